"""The reference implementations by name; `report: {published: cub200}` in a sweep file selects one."""

from analysis.references.cifar10 import CIFAR10
from analysis.references.cub200 import CUB200
from analysis.references.flowers102 import FLOWERS102
from analysis.references.hymenoptera import HYMENOPTERA
from analysis.references.mnist import MNIST
from analysis.references.reference import Reference

REFERENCES: dict[str, Reference] = {each.name: each for each in (CIFAR10, HYMENOPTERA, MNIST, CUB200, FLOWERS102)}
