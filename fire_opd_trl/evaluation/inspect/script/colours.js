// Colours of the style sheet and of numbers.
"use strict";

const RAMPS = {
    fire: {
        light: ["#ffffff", "#fff1cc", "#ffcb5c", "#f5872b", "#d9480f"],
        dark: ["#181b21", "#4a2a10", "#97460c", "#e27a1f", "#ffc26b"],
    },
    blue: {
        light: ["#ffffff", "#dbeafa", "#9cc8f0", "#4f9bdc", "#1f6fb8"],
        dark: ["#181b21", "#14324f", "#1d5d94", "#3f95da", "#a3d3ff"],
    },
    violet: {
        light: ["#ffffff", "#ece5f8", "#c9b5ea", "#9f80d6", "#7550b4"],
        dark: ["#181b21", "#33264f", "#5f4696", "#9877d4", "#d8c4ff"],
    },
    sides: {
        light: ["#c8500a", "#ee9a55", "#fbdcc0", "#ffffff", "#c9e0f4", "#64a8dd", "#1668ad"],
        dark: ["#ffb07a", "#c8641f", "#592f14", "#181b21", "#15375a", "#2b78bd", "#93ccff"],
    },
};
const METRICS = [
    {
        key: "weight",
        title: "weight",
        ramp: "fire",
        says: "How much the token counts in training. The mean of a trajectory is 1.",
    },
    {
        key: "advantage",
        title: "advantage",
        ramp: "sides",
        says: "What training does with the token: blue makes it likelier, orange makes it rarer.",
    },
    {
        key: "student_entropy",
        title: "student entropy",
        unit: "nats",
        ramp: "blue",
        says: "How unsure the student was of the token that comes here.",
    },
    {
        key: "teacher_entropy",
        title: "teacher entropy",
        unit: "nats",
        ramp: "violet",
        says: "How unsure the teacher was of the token that comes here.",
    },
    {
        key: "gap",
        title: "log-probability gap",
        unit: "nats",
        ramp: "sides",
        says: "Teacher minus student. Blue: the teacher finds the token likelier than the student did. Orange: rarer.",
    },
    { key: "none", title: "none", says: "The text alone." },
];
const metricOf = (key) => METRICS.find((one) => one.key === key);
const SERIES = ["series-0", "series-1", "series-2", "series-3", "series-4"];
const NAMED_SERIES = { kept: 0, dropped: 1 };

const isDark = () =>
    (document.documentElement.dataset.scheme ??
        (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const stops = (ramp) => RAMPS[ramp][isDark() ? "dark" : "light"];
const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

// A colour of the style sheet as a canvas understands it.
function css(name) {
    const probe = $("#token");
    probe.style.color = `var(--${name})`;
    const colour = getComputedStyle(probe).color;
    probe.style.color = "";
    return colour;
}

function mixed(ramp, place) {
    const all = stops(ramp);
    const at = Math.min(Math.max(place, 0), 1) * (all.length - 1);
    const [from, to] = [channels(all[Math.floor(at)]), channels(all[Math.ceil(at)])];
    return from.map((low, k) => Math.round(low + (to[k] - low) * (at % 1)));
}

// Black or white, whichever is read more easily: the contrast of the better one is 4.58 or more on every colour.
function ink(rgb) {
    const [r, g, b] = rgb.map((x) => (x / 255 <= 0.04045 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}

// The same colour means the same number in all trajectories; a few tokens in a hundred lie beyond its ends.
function range(metric) {
    if (metric.range) return metric.range;
    const numbers = [];
    for (const t of state.all) {
        if (!has(t, metric.key) || (!t.kept && ["weight", "advantage"].includes(metric.key))) continue;
        for (let i = 0; i < t.length; i++) {
            const x = trains(t, i) ? value(t, i, metric.key) : null;
            if (Number.isFinite(x)) numbers.push(metric.ramp === "sides" ? Math.abs(x) : x);
        }
    }
    const sorted = Float64Array.from(numbers).sort();
    const at = (share) => (sorted.length ? sorted[Math.floor(share * (sorted.length - 1))] : 0);
    // A nat is a factor of 2.7: what is less has no strong colour, however small the others are.
    const high = metric.ramp === "sides" ? Math.max(at(0.96), 1) : at(0.98) || sorted.at(-1) || 1;
    metric.range = metric.ramp === "sides" ? [-high, high] : [metric.key === "weight" ? at(0.02) : 0, high];
    return metric.range;
}

function shade(metric, x) {
    if (!metric.ramp || x === null || Number.isNaN(x)) return null;
    const [low, high] = range(metric);
    return mixed(metric.ramp, high > low ? (x - low) / (high - low) : 0.4);
}

function scale(ramp, low, high, from = 0) {
    const bar = make("span", { class: "ramp" });
    const colours = Array.from({ length: 13 }, (_, k) => `rgb(${mixed(ramp, from + ((1 - from) * k) / 12).join()})`);
    bar.style.background = `linear-gradient(90deg, ${colours.join()})`;
    return make(
        "div",
        { class: "legend" },
        make("div", { class: "scale" }, make("span", {}, low), bar, make("span", {}, high)),
    );
}

function drawLegend() {
    const metric = metricOf(state.shade);
    $("#legend").replaceChildren(make("span", {}, metric.says));
    if (!metric.ramp) return;
    const [low, high] = range(metric);
    const below = metric.ramp === "sides" || low > 0 ? `≤ ${short(low)}` : short(low);
    if (high > low) $("#legend").prepend(scale(metric.ramp, below, `≥ ${short(high)} ${metric.unit ?? ""}`));
    else $("#legend").prepend(make("span", {}, `All are ${short(high)}.`));
}
