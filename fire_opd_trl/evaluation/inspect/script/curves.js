// Learning curves.
"use strict";

const MANY_CURVES = 12;

function curveCard(runs, key) {
    const curves = runs.map((run) => run.curves.find((one) => one.key === key));
    const curve = curves.find(Boolean);
    const spoken = runs.flatMap((run, r) =>
        run.watchdogs.filter((one) => one.metric === key).map((one) => ({ ...one, run: r })),
    );
    const last = curves
        .map((one) => one && short(one.values.findLast((each) => each != null)))
        .filter(Boolean)
        .join(" / ");
    const steps = [...new Set(curves.flatMap((one) => one?.steps ?? []))].sort((a, b) => a - b);
    const at = (one, step) => one?.values[one.steps.indexOf(step)];
    return make(
        "figure",
        { class: "card", "data-curve": key },
        make("h3", {}, make("span", {}, curve.title), make("small", {}, `${last} ${curve.unit ?? ""}`)),
        make("p", { class: "small" }, curve.help),
        make("div", { class: "space" }),
        plot(`${curve.title}: ${curve.help}`, () => curveConfig(runs, curves, spoken, curve.unit)),
        disclosure("Numbers", ["step", ...runs.map((run) => run.name), "watchdog"], () =>
            steps.map((step) => [
                step,
                ...curves.map((one) => number(at(one, step))),
                spoken
                    .filter((one) => one.step === step)
                    .map((one) => one.watchdog)
                    .join(", "),
            ]),
        ),
    );
}

function curveConfig(runs, curves, spoken, unit) {
    const lines = curves
        .map((one, r) => one && lineStyle(runs[r].name, points(one.steps, one.values), css(SERIES[r]), { clip: 8 }))
        .filter(Boolean);
    const marks = {
        type: "line",
        label: "watchdog",
        mark: true,
        showLine: false,
        data: spoken.map((one) => ({
            x: one.step,
            y: markHeight(curves[one.run], one),
            says: `${one.watchdog}: ${one.says}`,
        })),
        pointStyle: "triangle",
        pointRadius: 7,
        pointHoverRadius: 9,
        borderColor: css("text"),
        backgroundColor: css("alarm"),
        order: -1,
    };
    const tooltip = {
        title: (items) => `step ${items[0].parsed.x}`,
        label: (item) =>
            item.dataset.mark
                ? wrapped(item.raw.says)
                : `${runs.length > 1 ? `${item.dataset.label}: ` : ""}${number(item.parsed.y)} ${unit ?? ""}`,
    };
    return config(
        "line",
        spoken.length ? [...lines, marks] : lines,
        axis("", { scale: { type: "linear" } }),
        axis("", {
            ticks: unit === "%" ? { maxTicksLimit: 5, callback: (x) => `${short(x)} %` } : { maxTicksLimit: 5 },
            scale: { min: floorOf(curves, unit) },
        }),
        { tooltip, interaction: { mode: "x" } },
    );
}

// No share is below 0; and of what is always 0, the axis would reach below.
function floorOf(curves, unit) {
    const flat = curves.every((one) => (one?.values ?? []).every((x) => !x));
    return unit === "%" || flat ? 0 : undefined;
}

function markHeight(curve, warning) {
    const onCurve = curve?.values[curve.steps.indexOf(warning.step)];
    return numeric(onCurve ?? (warning.value == null ? null : warning.value * (curve?.unit === "%" ? 100 : 1)));
}

// Without a training, what a metric should do in its course says nothing.
const meaning = (help, runs) => (runs.some((run) => run.trained) ? help : help.split(/(?<=\.) /)[0]);

// A curve of one point is a number: these stand in a table.
function drawNumbers(runs, keys) {
    const named = runs.length > 1;
    const cell = (tag, ...content) => make(tag, {}, ...content);
    const rows = keys.map((key) => {
        const curves = runs.map((run) => run.curves.find((one) => one.key === key));
        const { title, unit, help } = curves.find(Boolean);
        const values = curves.map((one) => cell("td", `${short(one?.values[0])} ${one ? unit : ""}`));
        return make("tr", { "data-curve": key }, cell("td", title), ...values, cell("td", meaning(help, runs)));
    });
    const head = named ? [make("thead", {}, make("tr", {}, ...["", ...runs.map((run) => run.name), ""].map((text) => cell("th", text))))] : [];
    $("#curve-table").append(make("table", {}, ...head, make("tbody", {}, ...rows)));
}

const wrapped = (text) => text.match(/.{1,50}(\s|$)|\S+/g) ?? [text];

function drawCurves(report) {
    const keys = [...new Set(report.runs.flatMap((run) => run.curves.map((one) => one.key)))];
    $("#curves").hidden = keys.length === 0;
    if ($("#curve-table")) return drawNumbers(report.runs, keys);
    const loud = new Set(report.runs.flatMap((run) => run.watchdogs.map((one) => one.metric)));
    const cards = keys.map((key) => curveCard(report.runs, key));
    cards.forEach((card, k) => {
        card.hidden = k >= MANY_CURVES && !loud.has(keys[k]);
    });
    $("#curve-cards").append(...cards);
    $("#spoken").hidden = !keys.some((key) => loud.has(key));
    const button = $("#all-curves");
    button.hidden = !cards.some((card) => card.hidden);
    button.textContent = `Show all ${keys.length} curves`;
    button.addEventListener("click", () => {
        for (const card of cards) card.hidden = false;
        button.hidden = true;
    });
}
