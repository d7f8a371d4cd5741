"""Spiking neurons and the networks made of them: plain torch, time first."""
