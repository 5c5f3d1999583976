"""What keeps TensorFlow's notes and warnings out of the scripts' output. They import it first: before TensorFlow."""

import os

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # its notes on the hardware

import tensorflow as tf

# Keras traces functions anew for every model; TensorFlow takes that for a mistake, and warns.
tf.get_logger().setLevel('ERROR')
