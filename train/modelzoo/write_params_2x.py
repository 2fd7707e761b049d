"""The `trainer:` dialect of Model Zoo 2.x: a params.yaml of 1.9 with its keys in their new places.

The places are those of Model Zoo's own table (`TRAINER_PARAMS_TO_LEGACY` of 2.10); keys that 2.x
does not have are left out. Schedules become `SequentialLR` of `LinearLR`, in `ScalePerParamLR`
where kernels have a learning rate of their own.
"""

from crystalmix.prep.runtime.types import Json

CLUSTER = {  # of trainer.init.backend.cluster_config -> of runconfig
    "num_csx": "num_csx",
    "max_wgt_servers": "num_wgt_servers",
    "mgmt_address": "mgmt_address",
    "mgmt_namespace": "mgmt_namespace",
    "credentials_path": "credentials_path",
    "mount_dirs": "mount_dirs",
    "python_paths": "python_paths",
    "num_workers_per_csx": "num_workers_per_csx",
    "max_act_per_csx": "num_act_servers",
    "job_labels": "job_labels",
    "job_priority": "job_priority",
    "job_time_sec": "job_time_sec",
    "disable_version_check": "disable_version_check",
}
BACKEND = {name: name for name in ("compile_dir", "compile_only", "validate_only")}
LOOP = {name: name for name in ("max_steps", "num_steps", "num_epochs", "eval_steps")}
CHECKPOINT = {"steps": "checkpoint_steps", "save_initial_checkpoint": "save_initial_checkpoint"}
LOGGING = {"log_steps": "log_steps", "log_level": "logging"}
PRECISION = {
    "loss_scaling_factor": "loss_scaling_factor",
    "max_gradient_norm": "max_gradient_norm",
    "log_loss_scale": "log_summaries",
}
FLAGS = {
    "csx.debug.wrk_memory_gi": "wrk_memory_gi",
    "csx.debug.fabric_type_blacklist": "fabric_type_blacklist",
}
GONE = {  # keys of `model` that 2.x has elsewhere or no more
    *("mixed_precision", "use_bfloat16", "boundary_casting", "scale_glu_initialization"),
    *("weight_initialization_seed", "use_position_embedding"),
}
LOADER_GONE = {"repeat", "vocab_size", "micro_batch_size"}
MICRO = "csx.performance.micro_batch_size"


def trainer(old: Json) -> Json:
    """Return a params.yaml of 1.9 in the dialect of 2.x."""
    optimizer, runconfig, loader = old["optimizer"], old["runconfig"], old["train_input"]
    backend: Json = {
        "backend_type": runconfig.get("target_device", "CSX"),
        **_renamed(runconfig, BACKEND),
    }
    if cluster := _renamed(runconfig, CLUSTER):
        backend["cluster_config"] = cluster
    fit: Json = {"train_dataloader": _without(loader, LOADER_GONE)}
    if "eval_input" in old:
        fit["val_dataloader"] = _without(old["eval_input"], LOADER_GONE)
    if runconfig.get("checkpoint_path"):
        fit["ckpt_path"] = runconfig["checkpoint_path"]
    init = {
        "model_dir": runconfig.get("model_dir", "./model_dir"),
        "seed": runconfig["seed"],
        "backend": backend,
        "model": {"name": "gpt2", **_without(old["model"], GONE)},
        "optimizer": {"AdamW": _adamw(optimizer)},
        "schedulers": [_schedule(optimizer)],
        "precision": _precision(old["model"], optimizer, runconfig),
        "loop": _renamed(runconfig, LOOP),
        "checkpoint": _renamed(runconfig, CHECKPOINT),
        "logging": _renamed(runconfig, LOGGING),
        "callbacks": _callbacks(loader, optimizer, runconfig),
    }
    return {"trainer": {"init": {k: v for k, v in init.items() if v not in ({}, [])}, "fit": fit}}


def _renamed(content: Json, names: dict[str, str]) -> Json:
    """Return the values of 1.9's keys under those of 2.x, null ones left out."""
    return {new: content[old] for new, old in names.items() if content.get(old) is not None}


def _without(content: Json, gone: set[str]) -> Json:
    return {key: value for key, value in content.items() if key not in gone}


def _adamw(optimizer: Json) -> Json:
    content: Json = {
        "betas": [optimizer["beta1"], optimizer["beta2"]],
        "eps": optimizer["eps"],
        "correct_bias": optimizer["correct_bias"],
        "weight_decay": optimizer["weight_decay_rate"],
    }
    if factors := optimizer.get("adjust_learning_rate"):
        content["adjust_learning_rate"] = factors
    return content


def _schedule(optimizer: Json) -> Json:
    lines = [
        {
            ("CosineDecayLR" if line["scheduler"] == "CosineDecay" else "LinearLR"): {
                "initial_learning_rate": line["initial_learning_rate"],
                "end_learning_rate": line["end_learning_rate"],
                "total_iters": line["steps"],
            }
        }
        for line in optimizer["learning_rate"]
    ]
    schedule = lines[0] if len(lines) == 1 else {"SequentialLR": {"schedulers": lines}}
    scaled = bool(optimizer.get("adjust_learning_rate"))
    return {"ScalePerParamLR": {"scheduler": schedule}} if scaled else schedule


def _precision(model: Json, optimizer: Json, runconfig: Json) -> Json:
    half = "bfloat16" if model["use_bfloat16"] else "float16"
    content: Json = {"enabled": model["mixed_precision"]}
    if model["mixed_precision"]:
        content["fp16_type"] = half
    if runconfig.get("precision_opt_level") is not None:
        content["precision_opt_level"] = runconfig["precision_opt_level"]
    return {**content, **_renamed(optimizer, PRECISION)}


def _callbacks(loader: Json, optimizer: Json, runconfig: Json) -> list[Json]:
    callbacks: list[Json] = []
    if (size := loader.get("micro_batch_size")) is not None:
        callbacks.append({"ScopedTrainFlags": {MICRO: size}})
    if flags := _renamed(runconfig, FLAGS):
        callbacks.append({"GlobalFlags": flags})
    if optimizer.get("log_summaries"):
        callbacks.append({"ComputeNorm": {}})
    if runconfig.get("is_pretrained_checkpoint"):
        callbacks.append({"LoadCheckpointStates": {"load_checkpoint_states": "model"}})
    return callbacks
