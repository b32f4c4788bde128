"""Script and style of the slice viewer; see viewer.py for the HTML that they act on."""

SCRIPT = """
"use strict";
for (const viewer of document.querySelectorAll(".viewer")) {
  const part = (name) => viewer.querySelector(`[data-part="${name}"]`);
  const [specimen, method, slice, blend] = ["specimen", "method", "slice", "blend"].map(part);
  const words = ["source", "synthetic", "target"];
  const layers = [];
  let group = null, slices = [];

  for (const frame of viewer.querySelectorAll(".frame")) {
    for (const kind of frame.dataset.layers.split(" ")) {
      const image = document.createElement("img");
      image.alt = "";
      image.dataset.layer = kind;
      frame.append(image);
      layers.push({ frame, kind, image });
    }
  }

  // Another specimen, axis or method: other sheets of slices.
  function choose() {
    const axis = viewer.querySelector("input[type=radio]:checked").value;
    const before = group;
    group = viewer.querySelector(
      `.sheets[data-specimen="${specimen.value}"][data-axis="${axis}"]`);
    if (group !== before) {
      const same = before !== null && before.dataset.axis === axis;
      const place = Number(slice.value) / (slices.length - 1 || 1);
      slices = group.dataset.slices.split(" ");
      slice.max = slices.length - 1;
      slice.value = same ? Math.round(place * (slices.length - 1)) : group.dataset.central;
    }
    for (const { frame, kind, image } of layers) {
      const own = kind === "source" || kind === "target" ? "" : `[data-method="${method.value}"]`;
      const sheet = group.querySelector(`[data-kind="${kind}"]${own}`);
      if (image.src !== sheet.src) image.src = sheet.src;
      image.style.height = `${100 * slices.length}%`;
      frame.style.setProperty("--ratio", group.dataset.ratio);
    }
    part("least").textContent = `\\u2212${group.dataset.limit}`;
    part("most").textContent = `+${group.dataset.limit}`;
    draw();
  }

  // Another slice or blend: the same sheets, moved and faded.
  function draw() {
    const at = Number(slice.value), mixed = Number(blend.value);
    for (const { frame, kind, image } of layers) {
      image.style.top = `${-100 * at}%`;
      if (frame.dataset.layers.includes(" ")) {
        const shown = { source: 1, synthetic: mixed, target: mixed - 1 }[kind];
        image.style.opacity = Math.min(1, Math.max(0, shown));
      }
    }
    const from = Math.min(1, Math.floor(mixed));
    const share = Math.round(100 * (mixed - from));
    const mix = [[100 - share, words[from]], [share, words[from + 1]]].filter(([part]) => part);
    const told = mix.map(([part, word]) => (part === 100 ? word : `${part} % ${word}`));
    part("blend-text").value = told.join(", ");
    part("slice-text").value = `${slices[at]} (${at + 1} of ${slices.length})`;
    blend.setAttribute("aria-valuetext", part("blend-text").value);
    slice.setAttribute("aria-valuetext", part("slice-text").value);
  }

  for (const input of [slice, blend]) input.addEventListener("input", draw);
  for (const input of viewer.querySelectorAll("select, input[type=radio]")) {
    input.addEventListener("change", choose);
  }
  viewer.classList.add("on");
  choose();
}
"""

STYLE = """
.viewer .live, .viewer .sheets { display: none; }
.viewer.on .live { display: block; }
.viewer.on .still { display: none; }
.viewer .controls { display: flex; flex-wrap: wrap; gap: 0.5rem 1.75rem; align-items: center;
  margin: 0.75rem 0; font-size: 0.9rem; }
.viewer fieldset { border: 0; margin: 0; padding: 0; display: flex; gap: 0.9rem; }
.viewer legend { float: left; padding: 0; margin: 0; }
.viewer .slider { display: grid; grid-template-columns: 4.5rem minmax(0, 26rem) 1fr; gap: 0.75rem;
  align-items: center; margin: 0.5rem 0; font-size: 0.9rem; }
.viewer .ends { display: flex; justify-content: space-between; grid-column: 2; margin-top: -0.9rem;
  color: #5b6168; font-size: 0.8rem; }
.viewer output { font-variant-numeric: tabular-nums; color: #5b6168; }
.viewer input[type=range] { width: 100%; margin: 0; }
.viewer select { font: inherit; max-width: 100%; }
.viewer .panels { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 0.75rem;
  margin-top: 1rem; }
.viewer .panels figure { grid-column: span 2; margin: 0; }
.viewer .panels figure.large { grid-column: span 3; }
.viewer .panels figcaption { margin: 0.2rem auto 0; text-align: center; }
.viewer .frame { position: relative; overflow: hidden; background: #000; margin: 0 auto;
  aspect-ratio: var(--ratio); width: min(100%, max(27vh, 12rem) * var(--ratio)); }
.viewer .large .frame { width: min(100%, max(48vh, 20rem) * var(--ratio)); }
.viewer .frame img { position: absolute; left: 0; width: 100%; max-width: none; }
.viewer .scale { display: grid; grid-template-columns: auto 1fr auto; gap: 0 0.5rem;
  align-items: center; color: #5b6168; font-size: 0.8rem; margin: 0.3rem auto 0; max-width: 26rem; }
.viewer .scale img { width: 100%; height: 0.6rem; display: block; image-rendering: pixelated; }
.viewer .still table { width: 100%; table-layout: fixed; break-inside: avoid; }
.viewer .still th, .viewer .still td { padding: 0.15rem; text-align: left; border: 0;
  white-space: normal; vertical-align: middle; }
.viewer .still tr { border: 0; }
.viewer .still th:first-child { width: 6rem; }
.viewer .still td img { display: block; width: 100%; }
.viewer .still .scale { margin: 0 0 1.5rem 6rem; }
@media print {
  .viewer.on .live { display: none; }
  .viewer.on .still { display: block; }
  .viewer .still table { width: 80%; font-size: 7.5pt; }
  .viewer img { print-color-adjust: exact; }
}
"""
