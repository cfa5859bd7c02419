"""The weights of cross-entropy and of the distillation term. Four spellings of them are translated here only."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from kdtrain.base_config import Config, Fraction, NonNegative

SPELLINGS = ("weight", "kd_ratio", "alpha", "alpha_ce")


class LossWeights(Config):
    """Exactly one of four spellings of the two weights of `cross_entropy` and the distillation term.

    weight w: cross-entropy 1, distillation w.
    kd_ratio r (setup 4): cross-entropy 1, distillation r/(1-r) if r < 1, else r.
    alpha a (setup 1): cross-entropy 1-a, distillation a.
    alpha_ce a (setups 2 and 3): cross-entropy a, distillation 1-a.
    """

    weight: NonNegative | None = Field(None, description="distillation weight; cross-entropy has 1")
    kd_ratio: NonNegative | None = Field(None, description="r < 1: weight r/(1-r); else weight r")
    alpha: Fraction | None = Field(None, description="share of the distillation term")
    alpha_ce: Fraction | None = Field(None, description="share of cross-entropy")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        written = [key for key in SPELLINGS if getattr(self, key) is not None]
        if len(written) != 1:
            raise ValueError(f"takes exactly one of {', '.join(SPELLINGS)}, got {', '.join(written) or 'none'}")
        return self

    @property
    def spelling(self) -> str:
        """The key that is written."""
        return next(key for key in SPELLINGS if getattr(self, key) is not None)

    @property
    def weights(self) -> tuple[float, float]:
        """Weights of cross-entropy and of the distillation term, rounded to twelve digits.

        The rounding makes alpha 0.3 and alpha_ce 0.7 equal, although 1 - 0.7 is not 0.3 in floats.
        """
        if self.weight is not None:
            return 1.0, _twelve_digits(self.weight)
        if self.kd_ratio is not None:
            return 1.0, _twelve_digits(self._of_ratio(self.kd_ratio))
        if self.alpha is not None:
            return _twelve_digits(1 - self.alpha), _twelve_digits(self.alpha)
        assert self.alpha_ce is not None
        return _twelve_digits(self.alpha_ce), _twelve_digits(1 - self.alpha_ce)

    def respell(self, spelling: str) -> float:
        """Return the value of another spelling that means the same two weights.

        Raises:
            ValueError: if that spelling cannot express them.
        """
        if spelling == self.spelling:
            value = getattr(self, spelling)
            assert isinstance(value, float | int)
            return float(value)
        cross_entropy, distillation = self.weights
        if spelling in ("weight", "kd_ratio") and cross_entropy == 1.0:
            return distillation if spelling == "weight" else self._as_ratio(distillation)
        if spelling in ("alpha", "alpha_ce") and abs(cross_entropy + distillation - 1) < 1e-12:
            return distillation if spelling == "alpha" else cross_entropy
        raise ValueError(
            f"{self.spelling} {getattr(self, self.spelling):g} (cross-entropy {cross_entropy:g}, "
            f"distillation {distillation:g}) cannot be written as {spelling}"
        )

    @staticmethod
    def _of_ratio(ratio: float) -> float:
        return ratio / (1 - ratio) if ratio < 1 else ratio

    @staticmethod
    def _as_ratio(weight: float) -> float:
        return weight / (1 + weight)


class RatioIsWeight(LossWeights):
    """The four spellings of LossWeights, but kd_ratio r is the weight r below 1 too, as in setup 4 for at."""

    kd_ratio: NonNegative | None = Field(None, description="the distillation weight itself, below 1 too")

    @staticmethod
    def _of_ratio(ratio: float) -> float:
        return ratio

    @staticmethod
    def _as_ratio(weight: float) -> float:
        return weight


def _require_cross_entropy(balance: LossWeights) -> LossWeights:
    if balance.weights[0] == 0:
        raise ValueError(
            "must leave cross-entropy a weight above 0: features and relations do not train the classifier,"
            f" got {balance.spelling} {getattr(balance, balance.spelling):g}"
        )
    return balance


WithCrossEntropy = Annotated[LossWeights, AfterValidator(_require_cross_entropy)]
"""For methods whose own term does not train the classifier: without cross-entropy it would keep its random weights."""

WithCrossEntropyRatioIsWeight = Annotated[RatioIsWeight, AfterValidator(_require_cross_entropy)]


def _twelve_digits(weight: float) -> float:
    return float(f"{weight:.12g}")
