// Charts, which are drawn when they are first seen, and anew in the other scheme.
"use strict";

const charts = []; // [{ canvas, config, chart }]: drawn when they are first seen, and anew in the other scheme
const seen = new IntersectionObserver(
    (entries) => {
        for (const entry of entries) if (entry.isIntersecting) draw(charts.find((one) => one.canvas === entry.target));
    },
    { rootMargin: "200px" },
);

function draw(one) {
    if (!one || one.chart) return;
    seen.unobserve(one.canvas);
    one.chart = new Chart(one.canvas, one.config());
}

function plot(title, config) {
    const canvas = make("canvas", { role: "img", "aria-label": title });
    charts.push({ canvas, config, chart: null });
    seen.observe(canvas);
    return make("div", { class: "plot" }, canvas);
}

function redraw() {
    for (const one of charts.filter((each) => each.chart)) {
        one.chart.destroy();
        one.chart = null;
        draw(one);
    }
}

// Upright lines: the cut of a histogram, the token that is looked at.
const uprights = {
    id: "uprights",
    afterDatasetsDraw(chart, _, options) {
        const { ctx, chartArea: area } = chart;
        for (const { at, label } of chart.lines ?? options.lines ?? []) {
            const place = chart.scales.x.getPixelForValue(at);
            if (!(place >= area.left - 1 && place <= area.right + 1)) continue;
            ctx.save();
            ctx.strokeStyle = ctx.fillStyle = css("text");
            ctx.lineWidth = 1.5;
            ctx.setLineDash(label ? [5, 4] : []);
            ctx.beginPath();
            ctx.moveTo(place, area.top);
            ctx.lineTo(place, area.bottom);
            ctx.stroke();
            const right = place > (area.left + area.right) / 2;
            ctx.textAlign = right ? "right" : "left";
            if (label) write(ctx, label, place + (right ? -6 : 6), area.top + 10);
            ctx.restore();
        }
    },
};

// Text on a ground of its own, so that it is read on bars, too.
function write(ctx, text, x, y) {
    const { width } = ctx.measureText(text);
    ctx.fillStyle = css("surface");
    ctx.fillRect(ctx.textAlign === "right" ? x - width - 3 : x - 3, y - 10, width + 6, 14);
    ctx.fillStyle = css("text");
    ctx.fillText(text, x, y);
}

function axis(title, options = {}) {
    return {
        title: { display: Boolean(title), text: title, color: css("muted") },
        grid: { color: css("line"), drawTicks: false },
        border: { display: false },
        ticks: {
            color: css("muted"),
            padding: 6,
            maxTicksLimit: 7,
            maxRotation: 0,
            includeBounds: false,
            ...options.ticks,
        },
        ...options.scale,
    };
}

function config(type, datasets, x, y, options = {}) {
    return {
        type,
        data: { labels: options.labels, datasets },
        options: {
            animation: false,
            maintainAspectRatio: false,
            normalized: true,
            indexAxis: options.indexAxis ?? "x",
            interaction: { mode: "index", axis: options.indexAxis ?? "x", intersect: false, ...options.interaction },
            scales: { x, y },
            onHover: options.onHover,
            plugins: {
                legend: {
                    display: datasets.filter((one) => one.label && !one.mark).length > 1,
                    position: "top",
                    align: "end",
                    labels: {
                        color: css("text"),
                        boxWidth: 10,
                        boxHeight: 10,
                        filter: (item) => !datasets[item.datasetIndex].mark,
                    },
                },
                tooltip: {
                    enabled: !options.onHover,
                    callbacks: options.tooltip ?? {},
                    displayColors: datasets.length > 1,
                },
                uprights: { lines: options.lines ?? [] },
            },
        },
        plugins: [uprights],
    };
}

const lineStyle = (label, data, colour, rest = {}) => ({
    type: "line",
    label,
    data,
    borderColor: colour,
    backgroundColor: colour,
    borderWidth: 2,
    pointRadius: data.length < 40 ? 2 : 0,
    pointHitRadius: 8,
    tension: 0,
    ...rest,
});
const points = (xs, ys) => xs.map((x, i) => ({ x, y: numeric(ys[i]) }));
const axisTitle = (one) => (typeof one === "string" ? one : (one?.label ?? one?.title ?? ""));
const seriesColour = (name, k) => css(SERIES[NAMED_SERIES[name] ?? k % SERIES.length]);

// A table behind a disclosure, made when it is opened.
function disclosure(title, head, rows) {
    const details = make("details", {}, make("summary", {}, title));
    details.addEventListener("toggle", () => {
        if (!details.open || details.children.length > 1) return;
        const cells = (tag, texts) => make("tr", {}, ...texts.map((text) => make(tag, {}, String(text ?? "–"))));
        const body = make("tbody", {}, ...rows().map((row) => cells("td", row)));
        details.append(
            make(
                "div",
                { class: "scroll", tabindex: 0 },
                make("table", {}, make("thead", {}, cells("th", head)), body),
            ),
        );
    });
    return details;
}
