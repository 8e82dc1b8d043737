// Readers: one trajectory each, with its strip.
"use strict";

const MANY_TOKENS = 2000; // so many are drawn at once

const nearest = (candidates, t) =>
    candidates.toSorted(
        (a, b) =>
            Math.abs(a.step - t.step) - Math.abs(b.step - t.step) ||
            Number(b.prompt === t.prompt) - Number(a.prompt === t.prompt) ||
            Math.abs(a.row - t.row) - Math.abs(b.row - t.row),
    )[0] ?? null;
const BESIDE = {
    opposite: (t) =>
        nearest(
            state.all.filter((one) => one.run === t.run && one.step === t.step && one.kept !== t.kept),
            t,
        ),
    run: (t) =>
        nearest(
            state.all.filter((one) => one.run !== t.run),
            t,
        ),
};

function select(t) {
    state.current = t;
    showReaders();
    for (const element of $("#list").children) {
        element.setAttribute("aria-selected", String(element.trajectory === t));
        element.classList.toggle("second", element.trajectory === state.second);
        if (element.trajectory !== t) continue;
        $("#list").setAttribute("aria-activedescendant", element.id);
        within($("#list"), element);
    }
    remember();
}

// Scrolls a box, and not the page, so that an element is in sight.
function within(box, element) {
    const [outer, inner] = [box.getBoundingClientRect(), element.getBoundingClientRect()];
    const bottom = Math.min(outer.bottom, Math.max(innerHeight, outer.top + 100));
    if (inner.top < outer.top || inner.bottom > bottom) box.scrollTop += inner.top - outer.top - 40;
}

function showReaders() {
    unpin();
    for (const reader of state.readers) reader.chart?.destroy();
    state.second = state.current && state.beside ? BESIDE[state.beside](state.current) : null;
    state.readers = [state.current, state.second].filter(Boolean).map(makeReader);
    $("#readers").replaceChildren(
        ...(state.readers.length
            ? state.readers.map((reader) => reader.element)
            : [make("p", { class: "card" }, "No trajectory fits. Change the search or the filters.")]),
    );
    for (const reader of state.readers) drawStrip(reader);
    const t = state.current;
    const opposite = $("#opposite");
    opposite.disabled = !t || !BESIDE.opposite(t);
    opposite.textContent = `Compare with a ${t && !t.kept ? "kept" : "dropped"} one`;
    $("#other-run").disabled = !t || !BESIDE.run(t);
    $("#close-other").hidden = !state.second;
}

function makeReader(t) {
    const reader = { t, cursor: -1, drawn: 0, elements: [], chart: null };
    reader.tokens = make("div", {
        class: "tokens",
        dir: "ltr",
        tabindex: 0,
        role: "group",
        "aria-label": `Tokens of ${nameOf(t)}. Left and right go from token to token.`,
        "aria-describedby": "token",
    });
    reader.caption = make("p", { class: "small" });
    reader.canvas = make("canvas", { role: "img", "aria-label": "Strip: a metric over the position of the token" });
    const prompt = make(
        "details",
        { class: "prompt", open: state.prompts },
        make("summary", {}, "Prompt"),
        make("pre", {}, make("bdi", {}, t.prompt)),
    );
    prompt.addEventListener("toggle", () => {
        state.prompts = prompt.open;
    });
    const several = state.report.runs.length > 1;
    reader.element = make(
        "article",
        { class: "card reader" },
        make(
            "h3",
            {},
            several ? make("span", { class: `dot run-${t.run}` }) : null,
            several ? make("bdi", {}, state.report.runs[t.run].name) : null,
            nameOf(t),
            ...badges(t),
        ),
        make("p", { class: "small about" }, factsOf(t)),
        make("p", { class: "why" }, whyOf(t)),
        prompt,
        reader.caption,
        make("div", { class: "strip" }, reader.canvas),
        hintOf(t),
        told(t) ? make("p", { class: "small hint" }, TOLD) : null,
        reader.tokens,
    );
    const at = (event) => Number(event.target.closest?.(".t")?.dataset.i ?? -1);
    reader.tokens.addEventListener("pointerover", (event) => {
        if (at(event) >= 0 && !state.pinned) point(reader, at(event));
    });
    reader.tokens.addEventListener("pointerleave", () => {
        if (!state.pinned) hideCard();
    });
    reader.tokens.addEventListener("click", (event) => {
        if (at(event) >= 0) {
            point(reader, at(event));
            pin();
        }
    });
    reader.tokens.addEventListener("focus", () => {
        if (reader.tokens.matches(":focus-visible")) point(reader, Math.max(reader.cursor, 0));
    });
    reader.tokens.addEventListener("blur", () => {
        if (!state.pinned) hideCard();
    });
    reader.tokens.addEventListener("scroll", () => {
        if (!state.pinned && !$("#token").hidden) placeCard(reader);
    });
    drawTokens(reader, MANY_TOKENS);
    return reader;
}

const TOLD =
    "The text in italics is from a tool or an environment, with the marks of its turn. The models read it; it does not train, and no figure counts it.";

function factsOf(t) {
    const alike = state.all.filter((one) => one.run === t.run && one.step === t.step && one.group === t.group).length;
    return [
        plural(t.length, "token"),
        told(t) ? `${thousands(told(t))} of them by a tool` : null,
        t.reward == null ? null : `reward ${short(t.reward)}`,
        t.finished ? "finished" : "not finished",
        state.all.some((one) => one.teacher !== t.teacher) ? `teacher: ${t.teacher}` : null,
        alike > 1 ? `one of ${alike} answers to this prompt` : null,
    ]
        .filter(Boolean)
        .join(" · ");
}

// In words, why the trajectory trains or does not.
function whyOf(t) {
    if (t.dropped_because === "empty") return "Dropped: none of its tokens can train.";
    if (t.dropped_because === "nonfinite_teacher") return "Dropped: the teacher gave it a number that is not finite.";
    const [trains, is] = state.report.runs[t.run].trained ? ["trains", "is"] : ["would train", "would be"];
    const what = t.kept ? `Kept: it ${trains} the student.` : `Dropped by the filter: nothing ${is} learned from it.`;
    const score = t.score == null ? "" : ` Its score is ${short(t.score, 4)}.`;
    const cut = t.threshold == null ? "" : ` ${state.report.runs[t.run].trained ? "At this step" : "Here"} the filter dropped scores up to ${short(t.threshold, 4)}.`;
    return what + score + cut;
}

// What to do where there is no colour to see.
function hintOf(t) {
    const { key, title } = metricOf(state.shade);
    const hint = (text) => make("p", { class: "small hint" }, text);
    if (key === "none") return null;
    if (!has(t, key)) return hint(`This run did not record the ${title}. Choose what else shades.`);
    const zero = (key === "weight" || key === "advantage") && t.columns[key].floats.every((x) => x === 0);
    if (!zero) return null;
    const box = hint(`The ${title} of all its tokens is 0. `);
    if (has(t, "gap")) {
        const see = { type: "button", class: "link", click: () => setShade("gap") };
        box.append(make("button", see, "See what the teacher thought of it: the log-probability gap"));
    }
    return box;
}

function drawTokens(reader, count) {
    const { t, elements, tokens } = reader;
    const metric = metricOf(state.shade);
    const hits = hitsOf(t, $("#search").value.toLowerCase());
    tokens.querySelector(".more")?.remove();
    const to = Math.min(t.length, reader.drawn + count);
    for (let i = reader.drawn; i < to; i++) elements.push(tokenElement(t, i, metric, hits));
    tokens.append(...elements.slice(reader.drawn));
    reader.drawn = to;
    if (to < t.length)
        tokens.append(
            make(
                "button",
                { type: "button", class: "more", click: () => drawTokens(reader, MANY_TOKENS) },
                `Show more of ${thousands(t.length)} tokens`,
            ),
        );
    if (t.length === 0) tokens.append(make("p", { class: "small" }, "It has no tokens."));
}

function tokenElement(t, i, metric, hits) {
    const element = make(
        "span",
        { class: `t${trains(t, i) ? "" : " idle"}${hits.has(i) ? " hit" : ""}`, "data-i": i },
        ...marked(shortened(t.tokens[i])),
    );
    const colour = trains(t, i) && metric.ramp ? shade(metric, value(t, i, metric.key)) : null;
    if (colour) {
        element.style.backgroundColor = `rgb(${colour.join()})`;
        element.style.color = ink(colour);
    }
    return element;
}

// The tokens in which a search is found.
function hitsOf(t, query) {
    const hits = new Set();
    if (!query) return hits;
    const text = textOf(t).toLowerCase();
    const starts = [];
    t.tokens.reduce((at, token, i) => {
        starts[i] = at;
        return at + token.length;
    }, 0);
    for (let at = text.indexOf(query), i = 0; at >= 0; at = text.indexOf(query, at + query.length)) {
        while (i + 1 < starts.length && starts[i + 1] <= at) i++;
        for (let k = i; k < starts.length && starts[k] < at + query.length; k++) hits.add(k);
    }
    return hits;
}

const PAIRS = {
    logps: ["log-probabilities", "student_logp", "teacher_logp"],
    entropies: ["entropies", "student_entropy", "teacher_entropy"],
};

function stripSeries(t) {
    const key = state.strip || (state.shade === "none" ? "weight" : state.shade);
    if (!PAIRS[key]) return has(t, key) ? [[metricOf(key).title, key]] : [];
    return PAIRS[key]
        .slice(1)
        .filter((name) => has(t, name))
        .map((name) => [name.startsWith("student") ? "student" : "teacher", name]);
}

function fills(name) {
    const { ramp } = metricOf(name) ?? { ramp: "blue" };
    const [below, above] = ramp === "sides" ? [0.1, 0.9] : [0.75, 0.75];
    return { below: `rgb(${mixed(ramp, below).join()})`, above: `rgb(${mixed(ramp, above).join()})` };
}

function drawStrip(reader) {
    const { t } = reader;
    const series = stripSeries(t);
    const alone = series.length === 1;
    const datasets = series.map(([label, name], k) => {
        const data = Array.from({ length: t.length }, (_, i) => ({
            x: i + 1,
            y: trains(t, i) || !told(t) ? drawable(value(t, i, name)) : null,
        }));
        const area = { stepped: "middle", fill: { target: "origin", ...fills(name) }, borderColor: "transparent" };
        return lineStyle(label, data, css(SERIES[k]), {
            borderWidth: 1.2,
            pointRadius: 0,
            parsing: false,
            ...(alone ? area : {}),
        });
    });
    const x = axis("", {
        scale: { type: "linear", min: 0.5, max: Math.max(t.length, 1) + 0.5, grid: { display: false } },
        ticks: { precision: 0 },
    });
    const y = axis("", { ticks: { maxTicksLimit: 4 }, scale: { beginAtZero: true } });
    reader.caption.textContent = alone ? `${series[0][0]}, by position` : "by position";
    reader.chart?.destroy();
    reader.chart = new Chart(reader.canvas, config("line", datasets, x, y, { onHover: hoverStrip(reader) }));
    reader.canvas.onpointerleave = () => {
        if (!state.pinned) hideCard();
    };
    markStrip(reader);
}

const drawable = (x) => (Number.isFinite(x) ? x : null);

// Marks the token that belongs to a place of the strip.
const hoverStrip = (reader) => (event, _, chart) => {
    const i = Math.round(chart.scales.x.getValueForPixel(event.x)) - 1;
    if (i >= 0 && i < reader.t.length && i !== reader.cursor && !state.pinned) point(reader, i, true);
};

function markStrip(reader) {
    reader.chart.lines = reader.cursor < 0 ? [] : [{ at: reader.cursor + 1 }];
    reader.chart.draw();
}
