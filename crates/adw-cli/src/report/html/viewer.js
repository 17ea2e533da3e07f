"use strict";
// Slices of volumes on canvases. Each figure with `data-volume` names a script element that holds, in base64 and zlib's
// format, an image, reference labels and predicted labels as bytes [z, y, x]: x grows to the left, y to posterior, z up.
const colours = ["#ffd43b", "#4dd2ff", "#ff9d3c", "#7dff8a", "#ff8ad8", "#c8b5ff"];
// Letters at the left, right, top and bottom of a view.
const sides = [["R", "L", "A", "P"], ["R", "L", "S", "I"], ["A", "P", "S", "I"]];

async function unpack(element) {
  const packed = Uint8Array.from(atob(element.textContent), c => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const numbers = name => element.dataset[name].split(",").map(Number);
  const shape = numbers("shape"), count = shape[0] * shape[1] * shape[2];
  const [image, reference, prediction] = [0, 1, 2].map(i => bytes.subarray(i * count, (i + 1) * count));
  return { shape, spacing: numbers("spacing"), start: numbers("start"), oriented: element.dataset.oriented === "1",
           image, reference, prediction };
}

class View {
  constructor(volume, element) {
    this.volume = volume;
    this.axis = Number(element.dataset.axis);
    this.name = element.dataset.name;
    const [z, y, x] = volume.shape, [dz, dy, dx] = volume.spacing;
    this.size = [[x, y], [x, z], [y, z]][this.axis];
    const mm = [[x * dx, y * dy], [x * dx, z * dz], [y * dy, z * dz]][this.axis];
    this.last = volume.shape[this.axis] - 1;
    this.canvas = document.createElement("canvas");
    const scale = Math.min(720 / mm[0], 720 / mm[1]);
    this.canvas.width = Math.max(1, Math.round(mm[0] * scale));
    this.canvas.height = Math.max(1, Math.round(mm[1] * scale));
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.slider = document.createElement("input");
    Object.assign(this.slider, { type: "range", min: 0, max: this.last, step: 1 });
    this.slider.setAttribute("aria-label", `${this.name} slice`);
    this.output = document.createElement("output");
    element.append(this.canvas, this.slider, this.output);
    this.pixels = new OffscreenCanvas(this.size[0], this.size[1]);
    this.show(volume.start[this.axis]);
    this.slider.addEventListener("input", () => this.show(Number(this.slider.value)));
    this.canvas.addEventListener("keydown", event => {
      const step = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10,
                     Home: -this.last, End: this.last }[event.key];
      if (step !== undefined) { event.preventDefault(); this.show(this.index + step); }
    });
    this.canvas.addEventListener("wheel", event => {
      // The page scrolls on where the volume ends, and unless the view was chosen.
      const next = this.index - Math.sign(event.deltaY);
      if (document.activeElement === this.canvas && next >= 0 && next <= this.last) { event.preventDefault(); this.show(next); }
    }, { passive: false });
    let from = null;
    this.canvas.addEventListener("pointerdown", event => {
      from = { x: event.clientX, index: this.index };
      this.canvas.setPointerCapture(event.pointerId);
      this.canvas.focus({ preventScroll: true });
    });
    this.canvas.addEventListener("pointermove", event => {
      if (from) this.show(from.index + Math.round((event.clientX - from.x) / 6));
    });
    for (const end of ["pointerup", "pointercancel"]) this.canvas.addEventListener(end, () => { from = null; });
  }

  // Index into the volume of a pixel of the present slice.
  at(column, row) {
    const [z, y, x] = this.volume.shape;
    if (this.axis === 0) return (this.index * y + row) * x + column;
    if (this.axis === 1) return ((z - 1 - row) * y + this.index) * x + column;
    return ((z - 1 - row) * y + column) * x + this.index;
  }

  show(index) {
    this.index = Math.min(Math.max(index, 0), this.last);
    this.slider.value = this.index;
    this.output.textContent = `${this.index + 1} of ${this.last + 1}`;
    this.canvas.setAttribute("aria-label", `${this.name} slice ${this.index + 1} of ${this.last + 1}, arrow keys move`);
    const [w, h] = this.size, grey = new ImageData(w, h);
    for (let row = 0, i = 0; row < h; row++) {
      for (let column = 0; column < w; column++, i += 4) {
        const value = this.volume.image[this.at(column, row)];
        grey.data[i] = grey.data[i + 1] = grey.data[i + 2] = value;
        grey.data[i + 3] = 255;
      }
    }
    this.pixels.getContext("2d").putImageData(grey, 0, 0);
    const context = this.canvas.getContext("2d");
    context.drawImage(this.pixels, 0, 0, this.canvas.width, this.canvas.height);
    this.contours(context, this.volume.reference, 0, 1);
    // Half an edge per pixel: a broken line.
    this.contours(context, this.volume.prediction, 0.25, 0.5);
    this.letters(context);
  }

  contours(context, labels, skip, length) {
    const [w, h] = this.size, dx = this.canvas.width / w, dy = this.canvas.height / h;
    const label = (column, row) => column < 0 || row < 0 || column >= w || row >= h ? 0 : labels[this.at(column, row)];
    const paths = new Map();
    const edge = (value, x, y, ex, ey) => {
      if (!value) return;
      if (!paths.has(value)) paths.set(value, new Path2D());
      paths.get(value).moveTo((x + skip * ex) * dx, (y + skip * ey) * dy);
      paths.get(value).lineTo((x + (skip + length) * ex) * dx, (y + (skip + length) * ey) * dy);
    };
    for (let row = 0; row <= h; row++) {
      for (let column = 0; column <= w; column++) {
        const here = label(column, row), above = label(column, row - 1), before = label(column - 1, row);
        if (here !== above) { edge(here, column, row, 1, 0); edge(above, column, row, 1, 0); }
        if (here !== before) { edge(here, column, row, 0, 1); edge(before, column, row, 0, 1); }
      }
    }
    context.lineWidth = 2.5;
    for (const [value, path] of paths) {
      context.strokeStyle = colours[value % 6];
      context.stroke(path);
    }
  }

  letters(context) {
    if (!this.volume.oriented) return;
    const { width: w, height: h } = this.canvas, [left, right, top, bottom] = sides[this.axis];
    context.font = "bold 24px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.textAlign = "center";
    for (const [letter, x, y] of [[left, 16, h / 2], [right, w - 16, h / 2], [top, w / 2, 18], [bottom, w / 2, h - 18]]) {
      context.lineWidth = 4;
      context.strokeStyle = "#000";
      context.strokeText(letter, x, y);
      context.fillStyle = "#fff";
      context.fillText(letter, x, y);
    }
  }
}

// Volumes are unpacked when their figure comes near; without the means to do so, the pictures stay.
if ("DecompressionStream" in window && "OffscreenCanvas" in window) {
  const observer = new IntersectionObserver(entries => {
    for (const { target } of entries.filter(entry => entry.isIntersecting)) {
      observer.unobserve(target);
      unpack(document.getElementById(target.dataset.volume)).then(volume => {
        for (const view of target.querySelectorAll(".view")) new View(volume, view);
        target.classList.add("live");
      });
    }
  }, { rootMargin: "400px" });
  document.querySelectorAll("[data-volume]").forEach(figure => observer.observe(figure));
}
