#!/bin/sh
# Export a sample if the model repository has no model yet: fill-repository SAMPLE [OPTION OF gptport export]...
set -eu

repository=${GPTPORT_REPOSITORY:-/models}
sample=$1
shift
for model in "$repository"/*/; do
    if [ -d "$model" ]; then
        echo "$repository has models; nothing to do"
        exit 0
    fi
done
checkpoint=$(mktemp -d)/$sample
gptport sample "$sample" --output "$checkpoint"
gptport export "$checkpoint" --repository "$repository" --name "$sample" "$@"
rm -rf "$checkpoint"
