/* Exact McNemar test, Tango's interval and Holm's adjustment, as in robust.stats. */
var robustStats = (function () {
  "use strict";

  function mcnemar(b, c) {
    var n = b + c, term = -n * Math.LN2, sum = 0;
    if (!n) return 1;
    for (var i = 0; i <= Math.min(b, c); i += 1) {
      sum += Math.exp(term);
      term += Math.log(n - i) - Math.log(i + 1);
    }
    return Math.min(1, 2 * sum);
  }

  function interval(b, c, n) {
    var z = 1.959963984540054, middle = (b - c) / n, step = 1e-9;
    function excess(d, side) {
      var linear = -b - c + (2 * n - b + c) * d;
      var onlyC = (Math.sqrt(Math.max(linear * linear + 8 * n * c * d * (1 - d), 0)) - linear) / (4 * n);
      return b - c - n * d - side * z * Math.sqrt(Math.max(n * (2 * onlyC + d * (1 - d)), 0));
    }
    function root(low, high, side) {
      for (var i = 0; i < 60; i += 1) {
        var at = (low + high) / 2;
        if (excess(at, side) > 0) low = at; else high = at;
      }
      return (low + high) / 2;
    }
    return [
      excess(-1, 1) <= 0 ? -1 : root(-1, middle - step, 1),
      excess(1, -1) >= 0 ? 1 : root(middle + step, 1, -1)
    ];
  }

  function holm(p) {
    var floor = 0, adjusted = [];
    p.map(function (value, at) { return [value, at]; })
      .sort(function (x, y) { return x[0] - y[0]; })
      .forEach(function (pair, rank) {
        floor = Math.max(floor, Math.min(1, (p.length - rank) * pair[0]));
        adjusted[pair[1]] = floor;
      });
    return adjusted;
  }

  return { mcnemar: mcnemar, interval: interval, holm: holm };
})();
