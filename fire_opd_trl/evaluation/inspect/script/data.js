// What page.py packed, and how it is read.
"use strict";

const NUMBERS = ["student_logp", "teacher_logp", "student_entropy", "teacher_entropy", "weight", "advantage"];
const NOTHING = 0x7fffdead; // page.py writes these bits where a number was not recorded

async function unpacked(id) {
    const source = atob($(`#${id}`).textContent);
    const bytes = new Uint8Array(source.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = source.charCodeAt(i);
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

// page.py writes the first bytes of all numbers, then their second bytes, and so on.
function joined(buffer) {
    const planes = new Uint8Array(buffer);
    const count = planes.length / 4;
    const bytes = new Uint8Array(planes.length);
    for (let i = 0; i < count; i++) for (let k = 0; k < 4; k++) bytes[4 * i + k] = planes[k * count + i];
    return bytes.buffer;
}

async function load() {
    const report = JSON.parse(new TextDecoder().decode(await unpacked("text")));
    const buffer = joined(await unpacked("numbers"));
    const floats = new Float32Array(buffer);
    const bits = new Uint32Array(buffer);
    let at = 0;
    report.runs.forEach((run, index) => {
        for (const t of run.trajectories) {
            t.run = index;
            t.length = t.tokens.length;
            t.columns = {};
            for (const name of NUMBERS.filter((one) => t.has.includes(one))) {
                t.columns[name] = {
                    floats: floats.subarray(at, at + t.length),
                    bits: bits.subarray(at, at + t.length),
                };
                at += t.length;
            }
        }
    });
    return report;
}

function value(t, i, name) {
    if (name === "gap")
        return has(t, "gap") ? difference(value(t, i, "teacher_logp"), value(t, i, "student_logp")) : null;
    const column = t.columns[name];
    return column && column.bits[i] !== NOTHING ? column.floats[i] : null;
}

const difference = (a, b) => (a === null || b === null ? null : a - b);
const trains = (t, i) => t.trains[i] === "1";
// How many tokens the student did not write. Where no token trains, the mask does not say who wrote them.
const told = (t) => (t.told ??= t.trains.includes("1") ? t.trains.split("0").length - 1 : 0);
const has = (t, name) =>
    name === "gap" ? t.has.includes("student_logp") && t.has.includes("teacher_logp") : t.has.includes(name);
const textOf = (t) => (t.text ??= t.tokens.join(""));
const largest = (t) =>
    (t.largest ??= t.columns.weight
        ? t.columns.weight.floats.reduce((a, b) => (b > a ? b : a), -Infinity)
        : -Infinity);
// How far the strongest of its tokens is from 0.
function extreme(t, name) {
    let most = 0;
    for (let i = 0; i < t.length; i++) {
        const x = trains(t, i) ? Math.abs(value(t, i, name)) : 0;
        if (Number.isFinite(x) && x > most) most = x;
    }
    return most;
}
const nameOf = (t) => `step ${t.step}, row ${t.row}`;
