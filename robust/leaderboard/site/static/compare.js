/* Pairs the verdicts of two entries. Their data are scripts, because a page opened from a folder may not fetch. */
var robustData = {};
(function () {
  "use strict";
  var selects = [document.getElementById("a"), document.getElementById("b")];
  var result = document.getElementById("result");
  var entries = {};
  robustIndex.forEach(function (entry) { entries[entry.id] = entry; });
  var names = { m: "misclassified", b: "broken", s: "survived", e: "error" };

  function element(name, text, className) {
    var made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function fill(select, chosen) {
    var group = null, board = null;
    select.appendChild(element("option", "choose"));
    select.lastChild.value = "";
    robustIndex.forEach(function (entry) {
      if (entry.board !== board) {
        group = select.appendChild(document.createElement("optgroup"));
        group.label = board = entry.board;
      }
      var option = group.appendChild(element("option", entry.name));
      option.value = entry.id;
    });
    if (entries[chosen]) select.value = chosen;
  }

  function load(file, then) {
    if (robustData[file]) { then(); return; }
    var script = document.createElement("script");
    script.src = "data/" + file + ".js";
    script.onload = then;
    script.onerror = function () { say("data/" + file + ".js is missing; publish the site again"); };
    document.head.appendChild(script);
  }

  function say(text) {
    result.textContent = "";
    result.appendChild(element("p", text));
  }

  function percent(value) { return (100 * value).toFixed(1); }

  function signed(value) { return (value > 0 ? "+" : "") + percent(value); }

  function paired(rows, a, b) {
    var found = { n: rows.length, both: 0, onlyA: 0, onlyB: 0 };
    rows.forEach(function (at) {
      var x = a.status[at] === "s", y = b.status[at] === "s";
      if (x && y) found.both += 1; else if (x) found.onlyA += 1; else if (y) found.onlyB += 1;
    });
    found.difference = (found.onlyA - found.onlyB) / found.n;
    found.interval = robustStats.interval(found.onlyA, found.onlyB, found.n);
    found.p = robustStats.mcnemar(found.onlyA, found.onlyB);
    return found;
  }

  function row(body, name, found, adjusted) {
    var line = body.insertRow();
    var head = element("th", name);
    head.scope = "row";
    line.appendChild(head);
    [found.n, percent((found.both + found.onlyA) / found.n), percent((found.both + found.onlyB) / found.n),
      signed(found.difference) + " [" + signed(found.interval[0]) + ", " + signed(found.interval[1]) + "]",
      found.onlyA, found.onlyB, found.p.toPrecision(2), adjusted].forEach(function (text) {
      line.appendChild(element("td", text, "n"));
    });
  }

  function table(heads, caption) {
    var made = element("table");
    made.appendChild(element("caption", caption));
    var line = made.createTHead().insertRow();
    heads.forEach(function (text, at) {
      var head = element("th", text, at && heads.length > 4 ? "n" : "");
      head.scope = "col";
      line.appendChild(head);
    });
    made.createTBody();
    var box = element("div", undefined, "scroll");
    box.appendChild(made);
    result.appendChild(box);
    return made.tBodies[0];
  }

  function show(a, b) {
    var x = robustData[a.id], y = robustData[b.id], samples = robustData["samples-" + a.samples];
    var all = samples.ids.map(function (_, at) { return at; });
    var whole = paired(all, x, y);
    result.textContent = "";
    [["A", a], ["B", b]].forEach(function (side) {
      var line = element("p", side[0] + ": ");
      var link = element("a", side[1].name);
      link.href = "entries/" + side[1].id + ".html";
      line.appendChild(link);
      line.appendChild(element("span", " on " + side[1].board + (side[1].trust === "trusted" ? "" : ", " + side[1].trust)));
      result.appendChild(line);
    });
    if (a.board !== b.board) {
      result.appendChild(element("p", "Not under the same conditions: the difference is not the models' alone.", "warning"));
    }
    var better = (whole.difference > 0 ? "A" : "B") +
      (a.board === b.board ? " is more robust " : " held on more samples, under other conditions ");
    var p = "(p = " + whole.p.toPrecision(2) + ")";
    var doubted = [["A", a], ["B", b]].filter(function (side) { return side[1].trust === "unreliable"; });
    var but = doubted.length ? ", but " + doubted.map(function (side) { return side[0]; }).join(" and ") +
      " must not be trusted." : ".";
    result.appendChild(element("p", (whole.p < 0.05 ? better + p : "No difference shown " + p) + but,
      "verdict"));
    var body = table(["class", "n", "A %", "B %", "A - B [95 %]", "only A", "only B", "p", "p (Holm)"],
      "Robust on the same samples");
    row(body, "all", whole, "");
    var labels = samples.labels.filter(function (label, at, list) { return list.indexOf(label) === at; });
    labels.sort(function (p, q) { return p - q; });
    var classes = labels.map(function (label) {
      return paired(all.filter(function (at) { return samples.labels[at] === label; }), x, y);
    });
    robustStats.holm(classes.map(function (found) { return found.p; })).forEach(function (p, at) {
      row(body, a.classes[labels[at]] || String(labels[at]), classes[at], p.toPrecision(2));
    });
    var differing = all.filter(function (at) { return (x.status[at] === "s") !== (y.status[at] === "s"); });
    var list = table(["sample", "label", "A", "B"], differing.length + " samples that differ");
    differing.slice(0, 500).forEach(function (at) {
      var line = list.insertRow();
      [samples.ids[at], a.classes[samples.labels[at]] || samples.labels[at], end(a, x, at), end(b, y, at)]
        .forEach(function (text) { line.appendChild(element("td", text)); });
    });
    if (differing.length > 500) result.appendChild(element("p", "The first 500 are listed.", "note"));
  }

  function end(entry, data, at) {
    var name = names[data.status[at]];
    if (data.status[at] === "s") return name;
    return name + (data.taken[at] < 0 ? "" : " as " + (entry.classes[data.taken[at]] || data.taken[at]));
  }

  function update() {
    var a = entries[selects[0].value], b = entries[selects[1].value];
    Array.prototype.forEach.call(selects[1].options, function (option) {
      option.disabled = Boolean(a && option.value && entries[option.value].samples !== a.samples);
    });
    if (!a || !b) return;
    if (a.samples !== b.samples) { say("These two were not measured on the same samples."); return; }
    load("samples-" + a.samples, function () {
      load(a.id, function () { load(b.id, function () { show(a, b); }); });
    });
  }

  var query = new URLSearchParams(location.search);
  fill(selects[0], query.get("a"));
  fill(selects[1], query.get("b"));
  selects.forEach(function (select) { select.addEventListener("change", update); });
  update();
})();
