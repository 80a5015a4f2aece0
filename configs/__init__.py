"""Settings that are shipped with sa_eval: `sa-eval --config NAME` reads NAME.yaml of this folder."""
