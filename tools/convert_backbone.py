#!/usr/bin/env python
"""Convert ImageNet weights of torchvision, timm or Res2Net's authors for Detectron2's backbones.

Only names change, and the classifier is left out. IN is the state dict, as published, of

- a ResNet or ResNeXt of torchvision or timm (resnet50, resnext101_32x8d, ...), for
  build_resnet_fpn_backbone and build_deformable_resnet_fpn_backbone;
- a Res2Net v1b (github.com/Res2Net/Res2Net-PretrainedModels, or timm's res2net101d), for
  build_res2net_fpn_backbone;

and their likes for RetinaNet; or a checkpoint of mmdetection with a ResNet, of which only the
backbone is taken. OUT is for MODEL.WEIGHTS. These networks take RGB, and have their
strides in the 3x3 convolutions:

    INPUT.FORMAT RGB MODEL.RESNETS.STRIDE_IN_1X1 False
    MODEL.PIXEL_MEAN [123.675,116.28,103.53] MODEL.PIXEL_STD [58.395,57.12,57.375]

Files that would run code when they are loaded are refused.
"""

from corrdet.engine.conversion import conversion_command
from corrdet.engine.converters.resnet import convert

KEYS = (
    "INPUT.FORMAT RGB MODEL.RESNETS.STRIDE_IN_1X1 False "
    "MODEL.PIXEL_MEAN [123.675,116.28,103.53] MODEL.PIXEL_STD [58.395,57.12,57.375]"
)


def main() -> None:
    # The checkpointer finds the backbone in the model by the ends of the names.
    conversion_command(__doc__, convert, f"They need {KEYS}", matching_heuristics=True)


if __name__ == "__main__":
    main()
