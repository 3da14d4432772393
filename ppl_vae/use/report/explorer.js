"use strict";
// A table that is wider than its box says so, whatever the width of the window.
for (const box of document.querySelectorAll(".wide")) {
  new ResizeObserver(() => box.classList.toggle("cut", box.scrollWidth > box.clientWidth)).observe(box);
}

// The latent explorer: a decoded grid and some rows, all in the page; nothing is computed by the model here.
(function () {
  const source = document.getElementById("explorer-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const $ = (id) => document.getElementById(id);
  const plane = $("plane"), field = $("field"), cross = $("cross"), where = $("where"), about = $("about");
  const points = Array.from(plane.querySelectorAll(".point")).sort((a, b) => a.dataset.i - b.dataset.i);
  const [left, top, width, height] = plane.dataset.box.split(" ").map(Number);
  const clamp = (v, low, high) => Math.min(Math.max(v, low), high);
  const flat = data.side[1] === 1; // one latent dimension
  let at = [(data.x[0] + data.x[1]) / 2, (data.y[0] + data.y[1]) / 2];

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const isImage = "shape" in data;
  const grid = isImage ? bytes(data.grid) : null, rows = isImage ? bytes(data.rows) : null;
  const size = isImage ? data.shape[0] * data.shape[1] * data.shape[2] : 0;

  // where z is among the codes of the grid: the lower neighbour and the way to the next, for each dimension
  function neighbours() {
    return [data.x, data.y].map(([low, high], j) => {
      const last = data.side[j] - 1, place = clamp(((at[j] - low) / (high - low)) * last, 0, last);
      const below = Math.min(Math.floor(place), Math.max(last - 1, 0));
      return [below, last ? place - below : 0];
    });
  }

  function paint(canvas, value) {
    const [h, w, colours] = data.shape;
    canvas.width = w;
    canvas.height = h;
    const context = canvas.getContext("2d"), image = context.createImageData(w, h);
    for (let p = 0; p < h * w; p++) {
      for (let c = 0; c < 3; c++) image.data[4 * p + c] = value(p * colours + (colours === 3 ? c : 0));
      image.data[4 * p + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  function paintDecoded() {
    const [[i, a], [j, b]] = neighbours(), n = data.side[0];
    const next = i + (a > 0 ? 1 : 0), above = j + (b > 0 ? 1 : 0);
    const corners = [[j * n + i, (1 - a) * (1 - b)], [j * n + next, a * (1 - b)],
      [above * n + i, (1 - a) * b], [above * n + next, a * b]];
    paint($("decoded"), (k) => corners.reduce((sum, [code, weight]) => sum + weight * grid[code * size + k], 0));
  }

  function fill(kind, value) {
    $("table-body").querySelectorAll("." + kind).forEach((cell, j) => { cell.textContent = value(j); });
  }

  function tell(z) {
    const numbers = (flat ? z.slice(0, 1) : z).map((v) => v.toFixed(2).replace("-", "\u2212"));
    return data.axes.map((name, j) => name + " = " + numbers[j]).join(", ");
  }

  function moveTo(z) {
    at = [clamp(z[0], ...data.x), flat ? 0 : clamp(z[1], ...data.y)];
    const right = left + (width * (at[0] - data.x[0])) / (data.x[1] - data.x[0]);
    const down = top + height * (1 - (at[1] - data.y[0]) / (data.y[1] - data.y[0]));
    cross.setAttribute("transform", "translate(" + right + " " + down + ")");
    where.textContent = tell(at);
    if (isImage) return paintDecoded();
    const code = neighbours().map(([below, way]) => below + Math.round(way));
    fill("here", (j) => data.grid[j][code[1] * data.side[0] + code[0]]);
  }

  function show(i) {
    points.forEach((point, j) => {
      point.classList.toggle("chosen", j === i);
      point.setAttribute("tabindex", j === i ? 0 : -1); // one of them is in the tab order, arrows reach the others
    });
    about.textContent = "row " + data.row[i] + " (" + data.kind[i] + "), score " + data.score[i];
    if (!isImage) return fill("row", (j) => data.rows[j][i]);
    const there = (i + 1) * size <= rows.length;
    paint($("row"), (k) => (there ? rows[i * size + k] : 127));
    if (!there) about.textContent += ", whose image is not in this file";
  }

  const inDrawing = (event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(plane.getScreenCTM().inverse());

  function follow(place) {
    moveTo([data.x[0] + ((place.x - left) / width) * (data.x[1] - data.x[0]),
      data.y[0] + (1 - (place.y - top) / height) * (data.y[1] - data.y[0])]);
  }

  // the row nearest to a place, if it is within a finger's reach
  function pointAt(place, reach) {
    const gaps = points.map((p) => Math.hypot(p.getAttribute("cx") - place.x, p.getAttribute("cy") - place.y));
    const nearest = gaps.indexOf(Math.min(...gaps));
    if (gaps[nearest] <= reach) show(nearest);
  }

  let held = false;
  plane.addEventListener("pointerdown", (event) => {
    held = true;
    field.focus({ preventScroll: true });
    follow(inDrawing(event));
    pointAt(inDrawing(event), 20);
    event.preventDefault();
  });
  plane.addEventListener("pointermove", (event) => {
    if (held) follow(inDrawing(event));
    pointAt(inDrawing(event), 8);
  });
  for (const end of ["pointerup", "pointercancel"]) window.addEventListener(end, () => { held = false; });

  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] };
  field.addEventListener("keydown", (event) => {
    const step = steps[event.key], part = event.shiftKey ? 10 : 50;
    if (!step) return;
    moveTo([at[0] + (step[0] * (data.x[1] - data.x[0])) / part, at[1] + (step[1] * (data.y[1] - data.y[0])) / part]);
    event.preventDefault();
  });

  points.forEach((point, i) => {
    point.addEventListener("focus", () => show(i));
    point.addEventListener("keydown", (event) => {
      const step = steps[event.key];
      if (event.key === "Enter" || event.key === " ") moveTo(data.at[i]);
      else if (step) points[clamp(i + step[0] - step[1], 0, points.length - 1)].focus();
      else return;
      event.preventDefault();
    });
  });

  $("panel").hidden = false;
  moveTo(data.at[0]);
  show(0);
})();
