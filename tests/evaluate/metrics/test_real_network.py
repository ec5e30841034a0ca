"""Explainers and measures together, on photographs with boxes and a trained MobileNetV2."""

import csv
import json

import timm
import torch
from PIL import Image

from common.models.zoo import lookup
from evaluate.explainers.explain import explain
from evaluate.maps.boxes import boxes_in_view
from evaluate.metrics.case import Case
from evaluate.metrics.registry import MEASURES, measure_case


def test_opti_cam_gains_fake_cam_does_not_and_saliency_lies_on_objects(shared_data):
    model = timm.create_model("mobilenetv2_100", pad_type="same").eval()
    weights = shared_data / "weights" / "mobilenetv2_100_same.pth"
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    transform = lookup("timm:mobilenetv2_100").transform
    with (shared_data / "imagenet_val.csv").open() as file:
        rows = list(csv.DictReader(file))[:3]
    pictures = [Image.open(shared_data / "imagenet_val" / row["file"]).convert("RGB") for row in rows]
    images = transform.normalise(torch.stack([transform.geometry()(p) for p in pictures]))
    labels = torch.tensor([int(row["label"]) for row in rows])
    boxes = [
        boxes_in_view(torch.tensor(json.loads(row["boxes"]), dtype=torch.float), p.width, p.height, transform)
        for row, p in zip(rows, pictures)
    ]
    methods = {"grad_cam": {}, "opti_cam": {"iterations": 15}, "fake_cam": {}, "random": {}}
    maps = explain(model, images, labels, methods, transform=transform)
    names = ["average_drop", "average_increase", "average_gain", "energy_pointing"]
    scores = {}
    for method, found in maps.items():
        case = Case(model, images, found, labels, transform=transform, boxes=boxes)
        for name, result in measure_case(case, names).items():
            scores[method, name] = MEASURES[name].aggregate(result.values)
    assert scores["opti_cam", "average_gain"] > scores["grad_cam", "average_gain"] > 1
    assert scores["fake_cam", "average_gain"] < 1 and scores["fake_cam", "average_drop"] < 1
    assert scores["fake_cam", "average_increase"] >= scores["grad_cam", "average_increase"]  # the flaw
    assert scores["grad_cam", "energy_pointing"] > scores["random", "energy_pointing"] + 0.1
