// Switches, keys, the address, and the start.
"use strict";

function setShade(key) {
    state.shade = key;
    showShade();
    drawBands();
    showReaders();
    remember();
}

function showShade() {
    for (const button of $("#shades").children)
        button.setAttribute("aria-pressed", String(button.dataset.key === state.shade));
    drawLegend();
}

function beside(kind) {
    state.beside = state.beside === kind ? null : kind;
    select(state.current);
}

function setScheme(name) {
    document.documentElement.dataset.scheme = name;
    rescheme();
}

function rescheme() {
    redraw();
    for (const box of document.querySelectorAll("#figure-cards .legend")) box.replaceWith(countScale(box.figure));
    if (state.all.length) setShade(state.shade);
}

// The address says what is looked at, so that a link shows it again.
function remember() {
    const t = state.current;
    if (t)
        history.replaceState(null, "", `#look=${[t.run, t.step, t.row, state.shade, state.beside ?? ""].join(".")}`);
}

function recall(address) {
    const [run, step, row, shadeKey, second] = (address.match(/^#look=(.*)/)?.[1] ?? "").split(".");
    if (row === undefined) return;
    state.current =
        state.all.find((t) => t.run === Number(run) && t.step === Number(step) && t.row === Number(row)) ??
        state.current;
    if (metricOf(shadeKey)) state.shade = shadeKey;
    if (BESIDE[second]) state.beside = second;
}

function step(by) {
    const next = state.shown[state.shown.indexOf(state.current) + by];
    if (next) select(next);
}

function stepToken(by) {
    const reader = state.readers.find((one) => one.cursor >= 0) ?? state.readers[0];
    if (!reader?.t.length) return;
    point(reader, Math.min(Math.max(reader.cursor + by, 0), reader.t.length - 1), true);
}

const click = (selector) => () => {
    if (!$(selector).disabled && !$(selector).hidden) $(selector).click();
};
const KEYS = [
    { keys: ["j", "ArrowDown"], shown: "j  ↓", says: "next trajectory", run: () => step(1) },
    { keys: ["k", "ArrowUp"], shown: "k  ↑", says: "trajectory before", run: () => step(-1) },
    {
        keys: ["ArrowRight"],
        shown: "→",
        says: "next token (with Shift: 10)",
        run: (event) => stepToken(event.shiftKey ? 10 : 1),
    },
    {
        keys: ["ArrowLeft"],
        shown: "←",
        says: "token before (with Shift: 10)",
        run: (event) => stepToken(event.shiftKey ? -10 : -1),
    },
    {
        keys: ["Enter"],
        shown: "Enter",
        says: "keep the numbers of the token open",
        run: () => {
            if (state.readers.some((one) => one.cursor >= 0)) pin();
        },
    },
    {
        keys: ["1", "2", "3", "4", "5", "6"],
        shown: "1 … 6",
        says: "what shades the tokens",
        run: (event) => setShade(METRICS[event.key - 1].key),
    },
    { keys: ["c"], shown: "c", says: "kept and dropped side by side", run: click("#opposite") },
    { keys: ["o"], shown: "o", says: "the other run side by side, if there are two", run: click("#other-run") },
    { keys: ["/"], shown: "/", says: "search", run: () => $("#search").focus() },
    { keys: ["t"], shown: "t", says: "light or dark", run: () => $("#scheme").click() },
    { keys: ["?"], shown: "?", says: "these keys", run: () => $("#keys").showModal() },
    {
        keys: ["Escape"],
        shown: "Esc",
        says: "close, leave the search",
        run: () => {
            unpin();
            document.activeElement.blur();
        },
    },
];

function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || $("#keys").open) return;
    const typing = event.target.matches?.("input, select, textarea");
    if (typing && event.key !== "Escape") return;
    const arrow = event.key === "ArrowDown" || event.key === "ArrowUp";
    if (arrow && !$("#trajectories").contains(document.activeElement)) return; // they scroll the page
    if (event.key === "Enter" && !event.target.matches?.(".tokens")) return;
    const key = KEYS.find((one) => one.keys.includes(event.key));
    if (!key) return;
    event.preventDefault();
    key.run(event);
}

function makeKeys() {
    $("#key-rows").append(
        ...KEYS.map((key) => make("tr", {}, make("td", {}, make("kbd", {}, key.shown)), make("td", {}, key.says))),
    );
    document.addEventListener("keydown", onKey);
    document.addEventListener("pointerdown", (event) => {
        if (state.pinned && !event.target.closest("#token, .t")) unpin();
    });
    $("#help").addEventListener("click", () => $("#keys").showModal());
    $("#scheme").addEventListener("click", () => setScheme(isDark() ? "light" : "dark"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", rescheme);
    addEventListener("beforeprint", () => charts.forEach(draw));
}

function makeTools() {
    const usable = METRICS.filter((metric) => metric.key === "none" || state.all.some((t) => has(t, metric.key)));
    const button = (metric) =>
        make(
            "button",
            {
                type: "button",
                "data-key": metric.key,
                "aria-pressed": "false",
                disabled: !usable.includes(metric),
                click: () => setShade(metric.key),
            },
            make("kbd", {}, String(METRICS.indexOf(metric) + 1)),
            ` ${metric.title}`,
        );
    $("#shades").append(...METRICS.map(button));
    const options = [
        ["", "as shaded"],
        ...usable.filter((one) => one.ramp).map((one) => [one.key, one.title]),
        ...Object.entries(PAIRS).map(([key, [title]]) => [key, `both ${title}`]),
    ];
    $("#strip").append(...options.map(([key, title]) => make("option", { value: key }, title)));
    $("#strip").addEventListener("change", (event) => {
        state.strip = event.target.value;
        state.readers.forEach(drawStrip);
    });
    if (!usable.some((metric) => metric.key === state.shade)) state.shade = usable[0].key;
    $("#opposite").addEventListener("click", () => beside("opposite"));
    $("#other-run").hidden = state.report.runs.length < 2;
    $("#other-run").addEventListener("click", () => beside("run"));
    $("#close-other").addEventListener("click", () => {
        state.beside = null;
        select(state.current);
    });
}

// The answer that is shown first: the kept one in which there is most to see.
function telling(all) {
    const kept = all.filter((t) => t.kept);
    const from = kept.length ? kept : all;
    const name = ["advantage", "gap", "weight"].find((one) => from.some((t) => has(t, one) && extreme(t, one) > 0));
    const most = name ? Math.max(...from.map((t) => extreme(t, name))) : 0;
    return from.find((t) => !name || extreme(t, name) === most) ?? null;
}

function drawTrajectories(report) {
    state.all = report.runs.flatMap((run) => run.trajectories);
    const left = report.runs.reduce((sum, run) => sum + (run.left_out ?? 0), 0);
    $("#left-out").textContent = left
        ? `${thousands(left)} more were recorded; this page shows some of every step.`
        : "";
    $("#desk").hidden = $("#filters").hidden = state.all.length === 0;
    $("#no-trajectories").hidden = state.all.length > 0;
    if (!state.all.length) return;
    state.current = telling(state.all);
    recall(location.hash);
    makeFilters();
    makeTools();
    showShade();
    refresh();
}

async function start() {
    try {
        Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
        Chart.defaults.font.size = 11;
        const address = location.hash;
        state.report = await load();
        drawCurves(state.report);
        drawFigures(state.report);
        drawTrajectories(state.report);
        makeKeys();
        if (address.startsWith("#look=")) $("#trajectories").scrollIntoView();
        document.documentElement.dataset.ready = "yes";
    } catch (error) {
        $("#broken").hidden = false;
        $("#broken").textContent =
            `This page could not be drawn (${error.message}). It needs a browser of 2024 or later.`;
        throw error;
    }
}

start();
