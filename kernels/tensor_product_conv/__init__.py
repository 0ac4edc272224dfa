from .op import tensor_product_conv

__all__ = ["tensor_product_conv"]
