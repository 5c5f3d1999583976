"""What the layers for Keras 3 and for tf_keras have in common. Nothing in here imports either Keras."""
