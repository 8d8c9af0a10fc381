/* Sorting is tablesort's; this filters, and says how many rows are left. */
(function () {
  "use strict";
  var table = document.getElementById("board");
  var filter = document.getElementById("filter");
  var trust = document.getElementById("trust");
  var shown = document.getElementById("shown");
  var rows = Array.prototype.concat.apply([], Array.prototype.map.call(table.tBodies, function (body) {
    return Array.prototype.slice.call(body.rows);
  }));
  var texts = rows.map(function (row) { return row.textContent.toLowerCase(); });

  function apply() {
    var words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    var left = 0;
    rows.forEach(function (row, at) {
      var fits = (!trust.value || row.getAttribute("data-trust") === trust.value) &&
        words.every(function (word) { return texts[at].indexOf(word) >= 0; });
      if (row.hidden === fits) row.hidden = !fits;
      if (fits) left += 1;
    });
    shown.textContent = left + " of " + rows.length;
  }

  var sorter = new Tablesort(table, { descending: true });
  sorter.current = table.querySelector("thead th[aria-sort]"); /* the order in which the page comes */
  filter.addEventListener("input", apply);
  trust.addEventListener("change", apply);
  table.addEventListener("keydown", function (event) { /* Space presses a heading as Enter does. */
    if (event.key === " " && event.target.closest("thead th")) {
      event.preventDefault();
      event.target.click();
    }
  });
  if (filter.value || trust.value) apply(); /* kept by the browser on reload */
})();
