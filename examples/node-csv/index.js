'use strict';
// CSV in, JSON summary out: the type of every column, its range or most frequent values, and counts by group.
// Event: {"csv": "a,b\n1,2\n", "groupBy": "a", "delimiter": ","}; only `csv` is needed. A CSV file as it is
// (content type text/csv) will do as well. While it works, each parsed row leaves as a line of JSON. Try it:
//
//   nanogrid deploy examples/node-csv
//   nanogrid invoke csv -d @examples/node-csv/event.json --follow

const nanogrid = require('nanogrid');

/** Rows of fields by RFC 4180: quoted fields may hold delimiters, line breaks and doubled quotes. */
function* parse(text, delimiter) {
  let row = [], field = '', quoted = false;
  for (let i = text.charCodeAt(0) === 0xfeff ? 1 : 0; i < text.length; i += 1) {
    const char = text[i];
    if (quoted) {
      if (char !== '"') field += char;
      else if (text[i + 1] === '"') field += text[(i += 1)];
      else quoted = false;
    } else if (char === '"' && field === '') quoted = true;
    else if (char === delimiter) {
      row.push(field);
      field = '';
    } else if (char === '\n' || char === '\r') {
      if (char === '\r' && text[i + 1] === '\n') i += 1;
      if (row.length || field) yield { row: [...row, field], at: i };
      row = [];
      field = '';
    } else field += char;
  }
  if (quoted) throw new Error('the CSV ends inside a quoted field: a closing quote is missing');
  if (row.length || field) yield { row: [...row, field], at: text.length };
}

/** A column's summary, from all its values as text. */
function summarize(values) {
  const filled = values.filter((value) => value !== '');
  const empty = values.length - filled.length;
  const numbers = filled.map(Number);
  if (filled.length && numbers.every(Number.isFinite)) {
    const sum = numbers.reduce((a, b) => a + b, 0);
    const [min, max] = numbers.reduce(([low, high], n) => [Math.min(low, n), Math.max(high, n)], [Infinity, -Infinity]);
    return { type: 'number', empty, min, max, mean: Number((sum / numbers.length).toPrecision(6)) };
  }
  const counts = count(filled);
  const top = Object.entries(counts).sort(([, a], [, b]) => b - a).slice(0, 3);
  return { type: 'text', empty, distinct: Object.keys(counts).length, top: Object.fromEntries(top) };
}

function count(values) {
  const counts = Object.create(null); // A value may be called "constructor".
  for (const value of values) counts[value] = (counts[value] ?? 0) + 1;
  return counts;
}

exports.handler = async function* (event) {
  const { csv, groupBy, delimiter = ',' } = Buffer.isBuffer(event) ? { csv: event.toString() } : event;
  if (typeof csv !== 'string') throw new TypeError('the event needs the field "csv" with the text of a CSV file');
  let header = null;
  const rows = [];
  for (const { row, at } of parse(csv, delimiter)) {
    if (header === null) {
      header = row;
      continue;
    }
    if (row.length !== header.length) {
      throw new RangeError(`row ${rows.length + 1} has ${row.length} fields, the header ${header.length}`);
    }
    rows.push(row);
    yield Object.fromEntries(header.map((name, i) => [name, row[i]]));
    if (rows.length % 1000 === 0) nanogrid.progress(at / csv.length);
  }
  if (header === null) throw new RangeError('the CSV is empty: its first line must name the columns');
  nanogrid.progress(1);
  const summary = { rows: rows.length, columns: {} };
  header.forEach((name, i) => (summary.columns[name] = summarize(rows.map((row) => row[i]))));
  if (groupBy !== undefined) {
    const column = header.indexOf(groupBy);
    if (column < 0) throw new RangeError(`groupBy: there is no column '${groupBy}', only ${header.join(', ')}`);
    summary.groups = count(rows.map((row) => row[column]));
  }
  return summary; // What a generator returns is the result; what it yields is streamed.
};
