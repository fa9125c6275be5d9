"""The front ends: gRPC for remote callers, D-Bus for local ones, over one service layer."""
