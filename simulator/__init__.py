"""An IoT Edge device, an IoT Hub and a vehicle on one laptop, offline; never shipped to a vehicle."""
