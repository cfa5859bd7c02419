"""The data of pictures that need networks or images, as arrays; analysis draws them."""
