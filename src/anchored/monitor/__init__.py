"""`CollapseMonitor`: measure diversity during training by any trainer of transformers or TRL."""
