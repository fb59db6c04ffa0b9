"""What the hub's own check of a model card refuses, as far as its documentation states it."""

import re

import yaml

# The ids of licences in the hub's list that this project's cards can have, and the tasks.
LICENCES = {"apache-2.0", "mit", "openrail++", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "other", "unknown", "openrail"}
TASKS = {"text-to-video", "image-to-video", "video-to-video", "text-to-image"}
RELATIONS = {"adapter", "merge", "quantized", "finetune"}


def errors_of_card(content: str) -> list[str]:
    """The errors of a card's header, in sentences; none for a card that the hub takes."""
    if not content.startswith("---\n"):
        return ["the card has no header"]
    try:
        header = yaml.safe_load(content[4:].partition("\n---")[0])
    except yaml.YAMLError as error:
        return [f"the header is no YAML: {error}"]
    errors = []
    if header.get("license") not in LICENCES:
        errors.append(f'"license" must be one of the hub\'s, not {header.get("license")}')
    if header.get("license") == "other" and not re.fullmatch(r"[a-z0-9.-]{1,100}", header.get("license_name", "")):
        errors.append('"license_name" must be a slug')
    if not re.fullmatch(r"https://\S+", header.get("license_link", "https://x")):
        errors.append('"license_link" must be a link')
    if header.get("pipeline_tag", "text-to-video") not in TASKS:
        errors.append(f'"pipeline_tag" {header["pipeline_tag"]} is unknown')
    if header.get("base_model_relation", "finetune") not in RELATIONS:
        errors.append(f'"base_model_relation" {header["base_model_relation"]} is unknown')
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", header.get("base_model", "a/b")):
        errors.append(f'"base_model" {header["base_model"]} is no id')
    if not all(isinstance(tag, str) for tag in header.get("tags", [])):
        errors.append('"tags" must be texts')
    for model in header.get("model-index", []):
        for result in model["results"]:
            if not (result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]):
                errors.append('"model-index" needs a task, and a data set with type and name')
            errors += [
                f'"model-index" has no figure for {one["type"]}'
                for one in result["metrics"]
                if not isinstance(one["value"], float)
            ]
    return errors
