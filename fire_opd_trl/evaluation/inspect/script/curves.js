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
        make("h3", {}, curve.title, make("small", {}, `${last} ${curve.unit ?? ""}`)),
        make("p", { class: "small" }, curve.help),
        make("div", { class: "space" }),
        plot(`${curve.title}: ${curve.help}`, () => curveConfig(runs, curves, spoken)),
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

function curveConfig(runs, curves, spoken) {
    const lines = curves
        .map((one, r) => one && lineStyle(runs[r].name, points(one.steps, one.values), css(SERIES[r])))
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
                : `${runs.length > 1 ? `${item.dataset.label}: ` : ""}${number(item.parsed.y)}`,
    };
    return config(
        "line",
        spoken.length ? [...lines, marks] : lines,
        axis("", { scale: { type: "linear" } }),
        axis("", { ticks: { maxTicksLimit: 5 } }),
        { tooltip, interaction: { mode: "x" } },
    );
}

function markHeight(curve, warning) {
    const onCurve = curve?.values[curve.steps.indexOf(warning.step)];
    return numeric(onCurve ?? warning.value);
}

const wrapped = (text) => text.match(/.{1,50}(\s|$)|\S+/g) ?? [text];

function drawCurves(report) {
    const keys = [...new Set(report.runs.flatMap((run) => run.curves.map((one) => one.key)))];
    const loud = new Set(report.runs.flatMap((run) => run.watchdogs.map((one) => one.metric)));
    const cards = keys.map((key) => curveCard(report.runs, key));
    cards.forEach((card, k) => {
        card.hidden = k >= MANY_CURVES && !loud.has(keys[k]);
    });
    $("#curve-cards").append(...cards);
    $("#spoken").hidden = !keys.some((key) => loud.has(key));
    $("#curves").hidden = keys.length === 0;
    const button = $("#all-curves");
    button.hidden = !cards.some((card) => card.hidden);
    button.textContent = `Show all ${keys.length} curves`;
    button.addEventListener("click", () => {
        for (const card of cards) card.hidden = false;
        button.hidden = true;
    });
}
