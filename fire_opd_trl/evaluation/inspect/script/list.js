// The list of trajectories: search, filters, order.
"use strict";

const state = {
    all: [],
    shown: [],
    current: null,
    second: null,
    beside: null,
    shade: "weight",
    strip: "",
    prompts: true,
    readers: [],
    pinned: false,
};

const yesNo = (yes, no, test) => [
    [yes, test],
    [no, (t) => !test(t)],
];
const each =
    (name, label = String) =>
    () =>
        [...new Set(state.all.map((t) => t[name]))].map((one) => [label(one), (t) => t[name] === one]);
const FILTERS = [
    { key: "run", title: "run", choices: () => each("run", (r) => state.report.runs[r].name)() },
    { key: "kept", title: "kept or dropped", choices: () => yesNo("kept", "dropped", (t) => t.kept), always: true },
    {
        key: "truncated",
        title: "finished or truncated",
        choices: () =>
            [
                ["finished", (t) => t.finished],
                ["truncated", (t) => t.truncated],
                ["neither", (t) => !t.finished && !t.truncated],
            ].filter(([name, test]) => name !== "neither" || state.all.some(test)),
        always: true,
    },
    { key: "looped", title: "looped", choices: () => yesNo("looped", "not looped", (t) => t.looped), always: true },
    { key: "step", title: "step", choices: each("step") },
    { key: "teacher", title: "teacher", choices: each("teacher") },
];
const by = (f) => (a, b) => (Number.isNaN(f(a)) ? 1 : 0) - (Number.isNaN(f(b)) ? 1 : 0) || f(a) - f(b);
const scoreOf = (t) => (t.score == null ? NaN : Number(t.score));
const SORTS = {
    step: (a, b) => a.run - b.run || a.step - b.step || a.row - b.row,
    "score, lowest first": by(scoreOf),
    "score, highest first": by((t) => -scoreOf(t)),
    "shortest first": by((t) => t.length),
    "longest first": by((t) => -t.length),
    "largest weight first": by((t) => -largest(t)),
};

function makeFilters() {
    for (const filter of FILTERS) {
        const choices = filter.choices();
        if (choices.length < 2 && !filter.always) continue;
        filter.tests = choices.map((choice) => choice[1]);
        const options = choices.map(([label, test], k) =>
            make("option", { value: k }, `${label} (${state.all.filter(test).length})`),
        );
        filter.select = make(
            "select",
            { id: `filter-${filter.key}`, change: refresh },
            make("option", { value: "" }, "all"),
            ...options,
        );
        $("#filters").append(make("label", {}, filter.title, filter.select));
    }
    if (state.all.some((t) => t.reward != null)) {
        const edge = (name) =>
            make("input", {
                type: "number",
                step: "any",
                id: `reward-${name}`,
                placeholder: name === "from" ? "≥" : "≤",
                "aria-label": `reward, ${name}`,
                input: refresh,
            });
        $("#filters").append(
            make("label", {}, "reward", make("span", { class: "between" }, edge("from"), edge("to"))),
        );
    }
    const sort = make(
        "select",
        { id: "sort", change: refresh },
        ...Object.keys(SORTS).map((name) => make("option", {}, name)),
    );
    $("#filters").append(make("label", {}, "sort by", sort));
    $("#search").addEventListener("input", refresh);
    $("#filters").addEventListener("submit", (event) => event.preventDefault());
    $("#clear").addEventListener("click", () => {
        $("#filters").reset();
        refresh();
    });
}

function rewardFits(t) {
    const [from, to] = ["from", "to"].map((name) => $(`#reward-${name}`)?.value ?? "");
    if (from === "" && to === "") return true;
    return (
        t.reward != null &&
        (from === "" || Number(t.reward) >= Number(from)) &&
        (to === "" || Number(t.reward) <= Number(to))
    );
}

function passes(t, query) {
    const chosen = FILTERS.every((filter) => !filter.select?.value || filter.tests[filter.select.value](t));
    return chosen && rewardFits(t) && (!query || `${t.prompt}\n${textOf(t)}`.toLowerCase().includes(query));
}

function refresh() {
    const query = $("#search").value.toLowerCase();
    state.shown = state.all.filter((t) => passes(t, query)).sort(SORTS[$("#sort").value]);
    $("#list").replaceChildren(...state.shown.map(entry));
    drawBands();
    $("#count").textContent =
        `${thousands(state.shown.length)} of ${plural(state.all.length, "trajectory", "trajectories")}`;
    $("#clear").hidden = state.shown.length === state.all.length;
    select(state.shown.includes(state.current) ? state.current : (state.shown[0] ?? null));
}

function badges(t) {
    const badge = (text, kind = "") => make("span", { class: `badge ${kind}` }, text);
    return [
        t.kept ? badge("kept", "kept") : badge("dropped", "dropped"),
        t.truncated ? badge("truncated") : null,
        t.looped ? badge("looped") : null,
    ].filter(Boolean);
}

function entry(t, k) {
    const several = state.report.runs.length > 1;
    const facts = [
        t.score == null ? null : `score ${short(t.score, 4)}`,
        plural(t.length, "token"),
        t.reward == null ? null : `reward ${short(t.reward)}`,
    ];
    const band = make("canvas", { width: 140, height: 1, "aria-hidden": "true" });
    const element = make(
        "div",
        { class: "entry", role: "option", id: `entry-${k}`, "aria-selected": "false", click: () => select(t) },
        make(
            "div",
            { class: "spread" },
            make(
                "span",
                {},
                several ? make("span", { class: `dot run-${t.run}`, title: state.report.runs[t.run].name }) : null,
                ` ${nameOf(t)}`,
            ),
            make("span", {}, ...badges(t)),
        ),
        make(
            "bdi",
            { class: "snippet" },
            t.tokens.slice(0, 40).join("").slice(0, 120).replace(/\s+/g, " ") || "(empty)",
        ),
        band,
        make("div", { class: "small" }, facts.filter(Boolean).join(" · ")),
    );
    element.trajectory = t;
    return element;
}

// The bands of the entries that are in sight.
const bands = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries)
        if (isIntersecting) drawBand(target.querySelector("canvas"), target.trajectory);
});

function drawBands() {
    bands.disconnect();
    for (const element of $("#list").children) bands.observe(element);
}

// A trajectory as one line of colours.
function drawBand(canvas, t) {
    const metric = metricOf(state.shade);
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, 1);
    if (!has(t, metric.key)) return;
    for (let x = 0; x < canvas.width; x++) {
        const [from, to] = [
            Math.floor((x * t.length) / canvas.width),
            Math.max(Math.ceil(((x + 1) * t.length) / canvas.width), 1),
        ];
        let strongest = null;
        for (let i = from; i < Math.min(to, t.length); i++) {
            const one = trains(t, i) ? value(t, i, metric.key) : null;
            if (one !== null && (strongest === null || Math.abs(one) > Math.abs(strongest))) strongest = one;
        }
        const colour = shade(metric, strongest);
        if (colour) {
            context.fillStyle = `rgb(${colour.join()})`;
            context.fillRect(x, 0, 1, 1);
        }
    }
}
