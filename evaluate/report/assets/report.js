"use strict";
// An element shows while one of its explainers and all of its checkpoints are ticked.
const boxes = [...document.querySelectorAll("#filters input")];
function apply() {
  const off = (kind) => new Set(boxes.filter((b) => kind in b.dataset && !b.checked).map((b) => b.dataset[kind]));
  const checkpoints = off("checkpoint"), explainers = off("explainer");
  for (const element of document.querySelectorAll("[data-checkpoints], [data-explainers]")) {
    const names = (element.dataset.checkpoints || "").split("\n");
    element.hidden = names.some((n) => checkpoints.has(n)) || explainers.has(element.dataset.explainers);
  }
}
for (const box of boxes) box.addEventListener("change", apply);
apply();
