from .op import knn

__all__ = ["knn"]
