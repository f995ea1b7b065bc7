"""Hugging Face's DETRs train with the losses of a Criterion, and with their own as before."""

import copy

import pytest
import torch

from corrdet.losses import Criterion, Weight

# Of the extra dev; pytest says so where it is not installed.
transformers = pytest.importorskip("transformers")
from corrdet.integrations.transformers import CriterionLoss, use_criterion  # noqa: E402

SIDE = 64
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
SMALL = {
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 2, "d_model": 32,
    "num_labels": 3, "auxiliary_loss": True,
}  # fmt: skip


def resnet_backbone():
    return transformers.ResNetConfig(
        **RESNET, layer_type="basic", out_features=["stage2", "stage3", "stage4"]
    )


def detr():
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        backbone_config=transformers.ResNetConfig(**RESNET, out_features=["stage4"]),
        num_queries=12,
        **SMALL,
    )
    return transformers.DetrForObjectDetection(config)


def deformable_detr():
    config = transformers.DeformableDetrConfig(
        use_timm_backbone=False, backbone_config=resnet_backbone(), num_queries=12, **SMALL
    )
    return transformers.DeformableDetrForObjectDetection(config)


QUICK = {
    "num_labels": 3, "d_model": 32, "num_queries": 12, "encoder_hidden_dim": 32,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "decoder_layers": 2, "num_denoising": 4,
    "decoder_in_channels": [32, 32, 32],
}  # fmt: skip


def rt_detr(version=""):
    backbone = transformers.RTDetrResNetConfig(
        **RESNET, layer_type="basic", out_features=["stage2", "stage3", "stage4"]
    )
    config = getattr(transformers, f"RTDetr{version}Config")(
        backbone_config=backbone, encoder_in_channels=[8, 16, 16], **QUICK
    )
    return getattr(transformers, f"RTDetr{version}ForObjectDetection")(config)


def d_fine():
    backbone = transformers.RTDetrResNetConfig(
        **RESNET, layer_type="basic", out_features=["stage2", "stage3", "stage4"]
    )
    config = transformers.DFineConfig(
        backbone_config=backbone, encoder_in_channels=[8, 16, 16], **QUICK
    )
    return transformers.DFineForObjectDetection(config)


def rt_detrs():
    return Criterion("varifocal", "giou", options={"varifocal": {"constant_weights": True}})


# The model, and the Criterion of transformers' own losses.
MODELS = {
    "rt_detr": (rt_detr, rt_detrs),
    "rt_detr_v2": (
        lambda: rt_detr("V2"),
        rt_detrs,
    ),
    "d_fine": (d_fine, rt_detrs),
    "deformable_detr": (deformable_detr, lambda: Criterion("sigmoid_focal", "giou")),
    "detr": (
        detr,
        lambda: Criterion(
            "softmax_cross_entropy",
            "giou",
            options={"softmax_cross_entropy": {"background_weight": 0.1}},
        ),
    ),
}


def built(name, criterion=None):
    torch.manual_seed(0)
    model = MODELS[name][0]()
    model.train()
    return model if criterion is None else use_criterion(model, criterion)


def batch(without_objects=False, large=False):
    """Two images; with ``large`` objects every predicted box overlaps every object."""
    generator = torch.Generator().manual_seed(0)
    labels = [
        {
            "class_labels": torch.tensor([0, 2]),
            "boxes": torch.tensor([[0.3, 0.3, 0.3, 0.4], [0.7, 0.6, 0.3, 0.5]]),
        },
        {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.4, 0.6, 0.5, 0.5]])},
    ]
    for own in labels if large else ():
        own["boxes"][:] = torch.tensor([0.5, 0.5, 0.95, 0.95])
    if without_objects:
        labels[1] = {"class_labels": torch.zeros(0).long(), "boxes": torch.zeros(0, 4)}
    return {
        "pixel_values": torch.rand(2, 3, SIDE, SIDE, generator=generator),
        "pixel_mask": torch.ones(2, SIDE, SIDE, dtype=torch.int64),
        "labels": labels,
    }


def outputs_of(model, data):
    torch.manual_seed(5)  # denoising draws noise, dropout too
    return model(**data)


def gradients(loss, model):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    return [torch.zeros(()) if gradient is None else gradient for gradient in found]


@pytest.mark.parametrize("name", [name for name in MODELS if name != "detr"])
def test_transformers_own_losses(name):
    """But for positives whose IoU is 0: negatives in varifocal loss, left out by RT-DETR."""
    data = batch(large=True)
    theirs, model = built(name), built(name, MODELS[name][1]())
    assert list(model.state_dict()) == list(theirs.state_dict())
    expected, ours = outputs_of(theirs, data), outputs_of(model, data)
    torch.testing.assert_close(ours.loss_dict, expected.loss_dict, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.loss, expected.loss)
    assert len(ours.loss_dict) > 6  # with those of other layers
    pairs = zip(gradients(ours.loss, model), gradients(expected.loss, theirs), strict=True)
    for own, other in pairs:
        scale = max(1.0, other.abs().max().item())  # some are hundreds, and sums of others
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-5 * scale)


def test_detr_has_another_divisor():
    """transformers divides cross entropy by the sum of weights, the Criterion by ground truths."""
    theirs, model = built("detr"), built("detr", MODELS["detr"][1]())
    expected, ours = outputs_of(theirs, batch()).loss_dict, outputs_of(model, batch()).loss_dict
    for name, value in expected.items():
        factor = (3 + 0.1 * (24 - 3)) / 3 if name.startswith("loss_ce") else 1
        torch.testing.assert_close(ours[name], value * factor)


@pytest.mark.parametrize("name", MODELS)
def test_trains(name):
    """Losses of corrdet's fall, and their gradients reach what is behind the backbone.

    transformers freezes backbones that are not pretrained ones of timm.
    """
    classification = "softmax_cross_entropy" if name == "detr" else "mal"
    couplings = {"correlation": 0.3, "association": 1.0}
    model = built(name, Criterion(classification, "diou", couplings))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    history = []
    for _ in range(10):
        output = outputs_of(model, batch())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        history.append(output.loss.item())
    assert history[-1] < 0.9 * history[0]
    layers = [key for key in output.loss_dict if key.startswith("loss_correlation")]
    assert "loss_correlation" in layers and len(layers) > 1
    assert any(
        parameter.grad is not None and parameter.grad.any()
        for key, parameter in model.named_parameters()
        if "input_proj" in key
    )


@pytest.mark.parametrize("name", MODELS)
def test_couplings_are_in_the_sum(name):
    """Each with its own weight, in all layers."""
    classification = MODELS[name][1]().classification.name
    plain = built(name, Criterion(classification, "giou"))
    coupled = built(name, Criterion(classification, "giou", {"association": 0.7}))
    before, after = outputs_of(plain, batch()), outputs_of(coupled, batch())
    added = [v for key, v in after.loss_dict.items() if key.startswith("loss_association")]
    assert len(added) >= 2 and all(value > 0 for value in added)
    torch.testing.assert_close(after.loss, before.loss + sum(added))


@pytest.mark.parametrize("name", MODELS)
def test_an_image_without_objects(name):
    model = built(name, MODELS[name][1]())
    assert outputs_of(model, batch(without_objects=True)).loss.isfinite()


def test_copies_are_their_own():
    model = built("rt_detr", MODELS["rt_detr"][1]())
    other = copy.deepcopy(model)
    assert other.loss_function.criterion is other.criterion is not model.criterion


def test_what_losses_keep_is_saved(tmp_path):
    criterion = Criterion("varifocal", "giou", ["correlation"], {"correlation": {"memory": 2}})
    model = built("rt_detr", criterion)
    outputs_of(model, batch())
    kept = [key for key in model.state_dict() if key.startswith("criterion.state.correlation")]
    assert kept


def test_counts_steps():
    criterion = Criterion("varifocal", "giou", {"association": Weight(1.0, warmup_iters=2)})
    model = built("rt_detr", criterion)
    values = [outputs_of(model, batch()).loss_dict["loss_association"].item() for _ in range(3)]
    assert values[0] == 0 < values[1] < values[2]
    assert model.loss_function.iteration == 3


def test_by_loss_mapping(monkeypatch):
    """Before a model is made, by the loss_type of its config."""
    from transformers.loss.loss_utils import LOSS_MAPPING

    loss = CriterionLoss(LOSS_MAPPING["RTDetrForObjectDetection"], MODELS["rt_detr"][1]())
    monkeypatch.setitem(LOSS_MAPPING, "corrdet", loss)
    model, data = built("rt_detr"), batch(large=True)
    expected = outputs_of(model, data).loss
    model.loss_type = "corrdet"
    torch.testing.assert_close(outputs_of(model, data).loss, expected)
    assert loss.iteration == 1


def test_refusals():
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    with pytest.raises(TypeError, match="loss is made as that of RT-DETR.*got one with For"):
        use_criterion(
            transformers.BertForSequenceClassification(config), Criterion("ap", "giou")
        )  # fmt: skip
    model = built("detr", Criterion("ap", "giou"))
    with pytest.raises(ValueError, match="'ap' works on sigmoid heads"):
        outputs_of(model, batch())
    use_criterion(model, MODELS["detr"][1]())
    assert outputs_of(model, batch()).loss.isfinite()


def test_trainer(tmp_path, monkeypatch):
    """transformers' Trainer: some steps, a lower loss, and the losses of an evaluation."""
    # It would take Detectron2's folder datasets/ for the package of that name.
    monkeypatch.setattr(transformers.trainer, "is_datasets_available", lambda: False)
    data = batch()
    samples = [
        {"pixel_values": pixels, "labels": labels}
        for pixels, labels in zip(data["pixel_values"], data["labels"], strict=True)
    ]

    def collate(own):
        pixels = torch.stack([sample["pixel_values"] for sample in own])
        return {"pixel_values": pixels, "labels": [sample["labels"] for sample in own]}

    model = built("rt_detr", Criterion("mal", "giou", ["correlation"]))
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=6, per_device_train_batch_size=2, learning_rate=0.001,
        logging_steps=1, save_strategy="no", report_to=[], remove_unused_columns=False,
        use_cpu=True, disable_tqdm=True, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = transformers.Trainer(
        model, arguments, data_collator=collate, train_dataset=samples, eval_dataset=samples
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert model.loss_function.iteration == 6
