"""The lab: two real machines, give and take, under an emulator."""
