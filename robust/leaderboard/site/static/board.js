/* Sorting is tablesort's; this filters, says how many rows are left, and lays out a page of them at a time:
   a browser takes seconds to lay out thousands of rows, and sorting would lay them out anew. */
(function () {
  "use strict";
  var PAGE = 100;
  var table = document.getElementById("board");
  var filter = document.getElementById("filter");
  var trust = document.getElementById("trust");
  var shown = document.getElementById("shown");
  var more = document.getElementById("more");
  var limit = PAGE;
  var count = 0;
  var texts = new Map();

  function text(row) {
    if (!texts.has(row)) texts.set(row, row.textContent.toLowerCase());
    return texts.get(row);
  }

  function apply() {
    var words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    var left = 0;
    Array.prototype.forEach.call(table.tBodies, function (body) {
      for (var row = body.firstElementChild; row; row = row.nextElementSibling) {
        var fits = (!trust.value || row.getAttribute("data-trust") === trust.value) &&
          (!words.length || words.every(function (word) { return text(row).indexOf(word) >= 0; }));
        var hide = !fits || left >= limit;
        if (row.hidden !== hide) row.hidden = hide;
        if (fits) left += 1;
      }
    });
    shown.textContent = left + " of " + count + (left > limit ? ", the first " + limit + " shown" : "");
    more.hidden = left <= limit;
    more.textContent = "Show " + Math.min(PAGE, left - limit) + " more";
  }

  function restart() {
    limit = PAGE;
    apply();
  }

  Array.prototype.forEach.call(table.tBodies, function (body) {
    count += body.rows.length;
    Array.from(body.childNodes).forEach(function (node) { /* Chromium moves rows slowly among line ends. */
      if (node.nodeType === 3) node.remove();
    });
  });
  var sorter = new Tablesort(table, { descending: true });
  sorter.current = table.querySelector("thead th[aria-sort]"); /* the order in which the page comes */
  table.addEventListener("afterSort", apply);
  filter.addEventListener("input", restart);
  trust.addEventListener("change", restart);
  more.addEventListener("click", function () {
    limit += PAGE;
    apply();
  });
  table.addEventListener("keydown", function (event) { /* Space presses a heading as Enter does. */
    if (event.key === " " && event.target.closest("thead th")) {
      event.preventDefault();
      event.target.click();
    }
  });
  var before = limit; /* paper has no button */
  window.addEventListener("beforeprint", function () { before = limit; limit = Infinity; apply(); });
  window.addEventListener("afterprint", function () { limit = before; apply(); });
  apply();
  (window.requestIdleCallback || setTimeout)(function () { /* what the first click and key would wait for */
    Array.prototype.forEach.call(table.tBodies, function (body) {
      for (var row = body.firstElementChild; row; row = row.nextElementSibling) {
        text(row);
        row.cells.item(0);
      }
    });
  });
})();
