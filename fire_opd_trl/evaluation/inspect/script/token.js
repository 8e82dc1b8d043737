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
        row("trains", trains(t, i) ? (t.kept ? "yes" : "no, its trajectory is dropped") : "no"),
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
    const below = box.bottom + 10 + card.offsetHeight < innerHeight;
    card.style.top = `${Math.max(below ? box.bottom + 8 : box.top - card.offsetHeight - 8, 4)}px`;
    card.style.left = `${Math.min(Math.max(box.left, 8), Math.max(innerWidth - card.offsetWidth - 16, 8))}px`;
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
