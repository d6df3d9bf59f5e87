// Prints what @huggingface/gguf, the Hub's own reader, finds in GGUF files: one JSON list.
// usage: node read_gguf.mjs MODULE FILE.gguf ... [--labels NAME ...]
const [module, ...rest] = process.argv.slice(2);
const { gguf, parseGGUFQuantLabel, GGMLFileQuantizationType } = await import(module);
const at = rest.indexOf("--labels");
const [files, names] = at < 0 ? [rest, []] : [rest.slice(0, at), rest.slice(at + 1)];
const found = [];
for (const path of files) {
  const { metadata, tensorInfos, parameterCount } = await gguf(path, { allowLocalFile: true, computeParametersCount: true });
  found.push({
    type: GGMLFileQuantizationType[metadata["general.file_type"]],
    architecture: metadata["general.architecture"],
    parameters: parameterCount,
    tensors: tensorInfos.length,
  });
}
console.log(JSON.stringify({ files: found, labels: names.map((name) => parseGGUFQuantLabel(name) ?? null) }));
