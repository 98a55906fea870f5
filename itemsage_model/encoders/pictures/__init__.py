"""The frozen picture encoder: bytes of a picture -> a vector. It stands where the paper has PinSage's visual part."""
