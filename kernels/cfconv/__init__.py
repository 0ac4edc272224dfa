from .basis import RadialBasis, bessel_basis, expnorm_basis, gaussian_basis
from .op import cfconv

__all__ = ["RadialBasis", "bessel_basis", "cfconv", "expnorm_basis", "gaussian_basis"]
