"""One folder per operator. ROOMS is the one list of them."""

ROOMS = ["segment_sum", "tensor_product", "tensor_product_conv", "steerable_message", "relaxed_linear", "dual_update",
         "knn", "segment_rank", "frames", "vn_linear", "vn_edge_conv", "spectral_conv", "radius_graph", "egnn_message",
         "cfconv", "sphere_activation", "sphere_product", "cp_product"]
