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
    part("least").textContent = `\u2212${group.dataset.limit}`;
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
