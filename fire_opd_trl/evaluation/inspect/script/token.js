// One token and its card.
"use strict";

function point(reader, i, scroll = false) {
    for (const other of state.readers) if (other !== reader && other.cursor >= 0) moveCursor(other, -1);
    while (reader.drawn <= i) drawTokens(reader, MANY_TOKENS);
    moveCursor(reader, i);
    if (scroll) within(reader.tokens, reader.elements[i]);
    fillCard(reader.t, i);
    placeCard(reader);
}

function moveCursor(reader, i) {
    reader.elements[reader.cursor]?.classList.remove("on");
    reader.cursor = i;
    reader.elements[i]?.classList.add("on");
    markStrip(reader);
}

function doesTrain(t, i) {
    if (trains(t, i)) return t.kept ? "yes" : "no, its trajectory is dropped";
    return told(t) ? "no, a tool’s" : "no";
}

function fillCard(t, i) {
    const token = t.tokens[i];
    const row = (label, x, more = "") =>
        make(
            "tr",
            {},
            make("th", { scope: "row" }, label),
            make("td", { "data-value": label }, x),
            make("td", {}, more),
        );
    const of = (name) => value(t, i, name);
    const rows = [
        row("position", `${thousands(i + 1)} of ${thousands(t.length)}`),
        t.token_ids ? row("id", String(t.token_ids[i])) : null,
        row("student log-prob.", number(of("student_logp")), percent(of("student_logp"))),
        row("teacher log-prob.", number(of("teacher_logp")), percent(of("teacher_logp"))),
        row("gap", number(of("gap")), "nats"),
        row("student entropy", number(of("student_entropy")), "nats"),
        row("teacher entropy", number(of("teacher_entropy")), "nats"),
        row("weight", number(of("weight"))),
        row("advantage", number(of("advantage"))),
        row("trains", doesTrain(t, i)),
    ];
    const long = token.length > LONG_TEXT;
    $("#token").replaceChildren(
        ...[
            state.pinned
                ? make("button", { type: "button", class: "close", "aria-label": "Close", click: unpin }, "×")
                : null,
            make("bdi", { class: "text" }, escaped(long ? token.slice(0, LONG_TEXT) : token) + (long ? "…" : "")),
            long
                ? make(
                      "details",
                      {},
                      make(
                          "summary",
                          {},
                          `All ${thousands(token.length)} characters${state.pinned ? "" : " (click the token first)"}`,
                      ),
                      make("pre", {}, make("bdi", {}, escaped(token))),
                  )
                : null,
            make("table", {}, make("tbody", {}, ...rows.filter(Boolean))),
        ].filter(Boolean),
    );
}

function placeCard(reader) {
    const card = $("#token");
    const token = reader.elements[reader.cursor];
    const box = token.getClientRects()[0];
    card.hidden = false;
    const { left, top } = placeOf(box, reader, card.offsetWidth, card.offsetHeight);
    card.style.top = `${top}px`;
    card.style.left = `${left}px`;
}

// Below the token where there is room; else the place in sight that hides the fewest tokens. What is said of the
// answers, above their text, and the token itself are never hidden, if there is any other place.
function placeOf(box, reader, width, height) {
    const [right, bottom] = [Math.max(innerWidth - width - 16, 8), innerHeight - height - 8];
    const end = reader.element.getBoundingClientRect().right - width; // beside it another answer may stand
    const left = Math.max(Math.min(box.left, right, end), 8);
    const top = Math.max(Math.min(box.top, bottom), 4);
    const places = [
        { left, top: box.bottom + 8 },
        { left, top: box.top - height - 8 },
        { left: box.right + 10, top },
        { left: right, top },
        { left: box.left - width - 10, top },
    ];
    const rects = (selector) => [...document.querySelectorAll(selector)].map((one) => one.getBoundingClientRect());
    const hidden = (place, boxes) =>
        boxes.filter(
            (one) =>
                place.left < one.right &&
                place.left + width > one.left &&
                place.top < one.bottom &&
                place.top + height > one.top,
        ).length;
    const said = [box, ...rects(".reader h3, .reader .about, .reader .why")];
    const inSight = (one) => one.left >= 4 && one.left <= right && one.top >= 4 && one.top <= bottom;
    const free = places.filter((one) => inSight(one) && hidden(one, said) === 0);
    if (free[0] === places[0] || free.length < 2) return free[0] ?? { left, top: Math.max(bottom, 4) };
    const tokens = rects(".t");
    const costs = free.map((one) => hidden(one, tokens));
    return free[costs.indexOf(Math.min(...costs))];
}

function hideCard() {
    $("#token").hidden = true;
    for (const reader of state.readers)
        if (reader.cursor >= 0 && document.activeElement !== reader.tokens) moveCursor(reader, -1);
}

function pin() {
    state.pinned = true;
    $("#token").classList.add("pinned");
    const reader = state.readers.find((one) => one.cursor >= 0);
    fillCard(reader.t, reader.cursor);
    placeCard(reader);
}

function unpin() {
    state.pinned = false;
    $("#token").classList.remove("pinned");
    hideCard();
}
