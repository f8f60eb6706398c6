"""Networks: frozen configurations that build torch modules from a shape, a class count and a key."""

from poisonkit.models.predict import Classifier, logits, predict, top
from poisonkit.models.resnet import ResidualNetwork, ResNet

# The widths of torchvision's networks, and of He et al. (2016, section 4.2) for the CIFAR family
MODELS: dict[str, ResNet] = {
    "resnet8": ResNet(8, 16, stem="small"),
    "resnet20": ResNet(20, 16, stem="small"),
    "resnet32": ResNet(32, 16, stem="small"),
    "resnet44": ResNet(44, 16, stem="small"),
    "resnet56": ResNet(56, 16, stem="small"),
    "resnet110": ResNet(110, 16, stem="small"),
    "resnet18": ResNet(18),
    "resnet34": ResNet(34),
    "resnet50": ResNet(50),
    "resnet101": ResNet(101),
    "resnet152": ResNet(152),
    "wide_resnet50_2": ResNet(50, 128, "bottleneck"),
}

__all__ = ["MODELS", "Classifier", "ResNet", "ResidualNetwork", "logits", "predict", "top"]
