"""Pre-training: MLM + VTM (+ VTC, + word-patch alignment), the paper's recipes and the demo."""
