"""The lab: two machines with real kernels, give and take, under an emulator."""
