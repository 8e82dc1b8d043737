// Figures of four kinds.
"use strict";

const middles = (edges) => edges.slice(1).map((edge, i) => (edge + edges[i]) / 2);
const between = (edges, i) => `${short(edges[i])} to ${short(edges[i + 1])}`;

const marksOf = (figure) => (figure.marks ?? []).map((one) => ({ at: one.x, label: one.label }));
const bound = (name) => (/quartile|quantile/.test(name) ? { borderDash: [4, 3], borderWidth: 1, pointRadius: 0 } : {});
const headOf = (figure) => figure.series.flatMap((one) => (one.counts ? [one.name, "count"] : [one.name]));
const rowOf = (figure, i) =>
    figure.series.flatMap((one) => {
        const shown = number(one.values[i]);
        return one.counts ? [shown, thousands(one.counts[i])] : [shown];
    });

function counted(figure, item) {
    const count = figure.series[item.datasetIndex].counts?.[item.dataIndex];
    return count == null ? "" : ` (of ${thousands(count)})`;
}

function countScale(figure) {
    const box = scale("fire", "1", `${thousands(Math.max(...figure.counts.flat(), 1))} tokens`, 0.12);
    box.figure = figure;
    return box;
}

const KINDS = {
    histogram: {
        config(figure) {
            const centers = middles(figure.edges);
            const datasets = figure.series.map((one, k) => ({
                label: one.name,
                data: points(centers, one.values),
                backgroundColor: seriesColour(one.name, k),
                barPercentage: 1,
                categoryPercentage: 0.96,
                grouped: false,
                stack: "all",
            }));
            const x = axis(axisTitle(figure.x), {
                scale: {
                    type: "linear",
                    offset: false,
                    min: figure.edges[0],
                    max: figure.edges.at(-1),
                    stacked: true,
                    grid: { display: false },
                },
            });
            return config(
                "bar",
                datasets,
                x,
                axis(axisTitle(figure.y), { scale: { stacked: true, beginAtZero: true } }),
                {
                    tooltip: {
                        title: (items) => between(figure.edges, items[0].dataIndex),
                        label: (item) => `${item.dataset.label}: ${thousands(item.parsed.y)}`,
                    },
                    lines: marksOf(figure),
                },
            );
        },
        head: (figure) => [axisTitle(figure.x), ...figure.series.map((one) => one.name)],
        rows: (figure) =>
            middles(figure.edges).map((_, i) => [
                between(figure.edges, i),
                ...figure.series.map((one) => short(one.values[i])),
            ]),
    },
    line: {
        config(figure) {
            const datasets = figure.series.map((one, k) =>
                lineStyle(one.name, points(figure.x_values, one.values), seriesColour(one.name, k), bound(one.name)),
            );
            return config(
                "line",
                datasets,
                axis(axisTitle(figure.x), { scale: { type: "linear" } }),
                axis(axisTitle(figure.y)),
                {
                    tooltip: {
                        title: (items) => `${axisTitle(figure.x)}: ${short(items[0].parsed.x)}`,
                        label: (item) => `${item.dataset.label}: ${short(item.parsed.y)}${counted(figure, item)}`,
                    },
                    interaction: { mode: "x" },
                    lines: marksOf(figure),
                },
            );
        },
        head: (figure) => [axisTitle(figure.x), ...headOf(figure)],
        rows: (figure) => figure.x_values.map((x, i) => [short(x), ...rowOf(figure, i)]),
    },
    bars: {
        height: (figure) => Math.max(250, 60 + 24 * figure.labels.length * (figure.series.length > 1 ? 1.5 : 1)),
        config(figure) {
            const datasets = figure.series.map((one, k) => ({
                label: one.name,
                data: one.values.map(numeric),
                backgroundColor: seriesColour(one.name, k),
                borderRadius: 3,
                maxBarThickness: 20,
            }));
            const counts = figure.series[0].counts;
            const labels = figure.labels.map((label, i) => (counts ? `${label} (${thousands(counts[i])})` : label));
            return config(
                "bar",
                datasets,
                axis(axisTitle(figure.y), { scale: { beginAtZero: true } }),
                axis("", {
                    ticks: { autoSkip: false, maxTicksLimit: labels.length, color: css("text") },
                    scale: { grid: { display: false } },
                }),
                {
                    labels,
                    indexAxis: "y",
                    tooltip: { label: (item) => `${item.dataset.label}: ${number(item.parsed.x)}` },
                    lines: marksOf(figure),
                },
            );
        },
        head: (figure) => [axisTitle(figure.x), ...headOf(figure)],
        rows: (figure) => figure.labels.map((label, i) => [label, ...rowOf(figure, i)]),
    },
    density: {
        config(figure) {
            const [xs, ys] = [middles(figure.x_edges), middles(figure.y_edges)];
            const cells = figure.counts
                .flatMap((row, j) => row.map((count, i) => ({ x: xs[i], y: ys[j], i, j, count })))
                .filter((cell) => cell.count > 0);
            const top = Math.max(...cells.map((cell) => cell.count), 1);
            const colour = (cell) =>
                `rgb(${mixed("fire", 0.12 + (0.88 * Math.log(cell.count)) / Math.max(Math.log(top), 1e-9)).join()})`;
            const dataset = {
                label: "tokens",
                data: cells,
                backgroundColor: cells.map(colour),
                borderWidth: 0,
                width: ({ chart }) => (chart.chartArea?.width ?? 0) / xs.length - 0.5,
                height: ({ chart }) => (chart.chartArea?.height ?? 0) / ys.length - 0.5,
            };
            const edge = (edges, title) =>
                axis(title, {
                    scale: {
                        type: "linear",
                        offset: false,
                        reverse: false,
                        min: edges[0],
                        max: edges.at(-1),
                        grid: { display: false },
                    },
                });
            return config(
                "matrix",
                [dataset],
                edge(figure.x_edges, axisTitle(figure.x)),
                edge(figure.y_edges, axisTitle(figure.y)),
                {
                    interaction: { mode: "nearest", axis: "xy", intersect: true },
                    tooltip: {
                        title: () => "",
                        label: ({ raw }) => [
                            plural(raw.count, "token"),
                            `${axisTitle(figure.x)} ${between(figure.x_edges, raw.i)}`,
                            `${axisTitle(figure.y)} ${between(figure.y_edges, raw.j)}`,
                        ],
                    },
                },
            );
        },
        below: countScale,
        head: (figure) => [axisTitle(figure.x), axisTitle(figure.y), "tokens"],
        rows: (figure) =>
            figure.counts
                .flatMap((row, j) =>
                    row.map((count, i) => [between(figure.x_edges, i), between(figure.y_edges, j), count]),
                )
                .filter((row) => row[2] > 0),
    },
};

function figureCard(figure, run, named) {
    const kind = KINDS[figure.kind];
    const head = make("h3", {}, figure.title);
    if (named)
        head.append(make("small", {}, make("span", { class: `dot run-${named.indexOf(run)}` }), ` ${run.name}`));
    const note = make("p", { class: "small" }, figure.note);
    const attributes = { class: "card", "data-figure": figure.id };
    if (!kind) return make("figure", attributes, head, note); // there is nothing to draw
    const box = plot(`${figure.title}: ${figure.note}`, () => kind.config(figure));
    if (kind.height) box.style.height = `${kind.height(figure)}px`;
    return make(
        "figure",
        attributes,
        head,
        note,
        box,
        kind.below?.(figure),
        make("div", { class: "space" }),
        disclosure("Numbers", kind.head(figure), () => kind.rows(figure)),
    );
}

function drawFigures(report) {
    const ids = [...new Set(report.runs.flatMap((run) => run.figures.map((one) => one.id)))];
    for (const id of ids) {
        for (const run of report.runs) {
            const figure = run.figures.find((one) => one.id === id);
            if (figure)
                $("#figure-cards").append(figureCard(figure, run, report.runs.length > 1 ? report.runs : null));
        }
    }
    $("#figures").hidden = ids.length === 0;
}
