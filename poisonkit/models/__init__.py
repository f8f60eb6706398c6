"""Networks: frozen configurations that build torch modules from a shape, a class count and a key."""

from poisonkit.models.convnet import ConvNet, ConvolutionalNetwork
from poisonkit.models.predict import Classifier, logits, predict, top
from poisonkit.models.resnet import ResidualNetwork, ResNet
from poisonkit.models.vgg import VGG, VGGNetwork
from poisonkit.models.vit import VisionTransformer, ViT

#: What a recipe may name: each builds its network, and scales itself for a base model of an ensemble
Model = ResNet | ViT | VGG | ConvNet

#: Networks by name: torchvision's widths, and those of He et al. (2016, section 4.2) for the CIFAR family
MODELS: dict[str, Model] = {
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
    "vgg11": VGG(11, batch_norm=False),
    "vgg13": VGG(13, batch_norm=False),
    "vgg16": VGG(16, batch_norm=False),
    "vgg19": VGG(19, batch_norm=False),
    "vgg11_bn": VGG(11),
    "vgg13_bn": VGG(13),
    "vgg16_bn": VGG(16),
    "vgg19_bn": VGG(19),
    "vit_tiny16": ViT(12, 192, 3),
    "vit_small16": ViT(12, 384, 6),
    "vit_base16": ViT(12, 768, 12),
    "vit_mini4": ViT(6, 96, 3, patch=4),  # of this package, for images of 32 pixels and a processor
    "convnet3": ConvNet(),
    "convnet4": ConvNet(4),  # for images of 64 pixels
}

__all__ = [
    "MODELS",
    "VGG",
    "Classifier",
    "ConvNet",
    "ConvolutionalNetwork",
    "Model",
    "ResNet",
    "ResidualNetwork",
    "VGGNetwork",
    "ViT",
    "VisionTransformer",
    "logits",
    "predict",
    "top",
]
