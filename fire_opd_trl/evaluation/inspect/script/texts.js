// Elements, numbers and texts. Whatever a model wrote becomes a text node, and never HTML.
"use strict";

const LONG_TEXT = 200; // characters of a token that are shown

const $ = (selector) => document.querySelector(selector);

function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (typeof value === "function") element.addEventListener(name, value);
        else if (value === true) element.setAttribute(name, "");
        else if (value !== false && value != null) element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child != null));
    return element;
}

// Four decimals, or four digits where these would be zeros.
function number(value) {
    if (value == null) return "–";
    const x = Number(value);
    if (Number.isNaN(x)) return "NaN";
    if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
    const text = x !== 0 && Math.abs(x) < 0.001 ? x.toExponential(3) : x.toFixed(4);
    return text.replace("-", "−").replace("e-", "e−");
}

// For scales and axes, where three digits are enough; and four for scores, which are compared with each other.
function short(value, digits = 3) {
    if (value == null || !Number.isFinite(Number(value))) return number(value);
    return String(Number(Number(value).toPrecision(digits))).replace("-", "−").replace("e-", "e−");
}
const thousands = (value) => Number(value).toLocaleString("en");
const percent = (logp) => (Number.isFinite(logp) ? `${short(100 * Math.exp(logp))} %` : "");
const numeric = (value) => (value == null ? null : Number(value));
const plural = (count, one, many = `${one}s`) => `${thousands(count)} ${count === 1 ? one : many}`;

// Characters that are not seen, or that turn what follows around.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/;
const codePoint = (character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

function escaped(text) {
    const unseen = new RegExp(UNSEEN, "g");
    return JSON.stringify(text).replace(unseen, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

function marked(text) {
    if (text === "") return [mark("∅")];
    if (/^ +$/.test(text)) return [mark("·".repeat(text.length))];
    return text.split(new RegExp(`(${UNSEEN.source})`)).map((part) => {
        if (!UNSEEN.test(part)) return document.createTextNode(part);
        if (part === "\n") return both(mark("↵"), "\n");
        if (part === "\t") return both(mark("→"), "\t");
        return mark(part === "\r" ? "␍" : codePoint(part));
    });
}

const mark = (text) => make("i", { class: "mark" }, text);

function both(...parts) {
    const fragment = document.createDocumentFragment();
    fragment.append(...parts);
    return fragment;
}

function shortened(text) {
    return text.length > LONG_TEXT ? `${text.slice(0, LONG_TEXT)}… (${thousands(text.length)} characters)` : text;
}
