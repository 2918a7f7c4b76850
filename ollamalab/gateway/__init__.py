"""The gateway: response cache, bounded fair queue and stream batcher as one HTTP service."""
