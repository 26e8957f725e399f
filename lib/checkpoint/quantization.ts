import { ModelError } from '../errors.js'
import { readCompressedTensors } from './compressed-tensors.js'
import type { JsonObject } from './config-json.js'
import { Fields } from './fields.js'
import { readModelOpt } from './modelopt.js'
import { noQuantization, type QuantizationRecipe } from './recipe.js'

export { blockSize, type ModuleFormat, noQuantization, type QuantizationRecipe } from './recipe.js'

function readEmbedded(fields: Fields): QuantizationRecipe {
  const method = fields.string('quant_method', fields.has('quant_algo') ? 'modelopt' : undefined)
  if (method.startsWith('modelopt')) return readModelOpt(fields)
  if (method === 'compressed-tensors') return readCompressedTensors(fields)
  throw fields.unsupported('quant_method', method, 'modelopt and compressed-tensors')
}

function readSidecar(json: JsonObject, file: string): QuantizationRecipe {
  const fields = new Fields(json, file)
  const quantization = fields.object('quantization')
  if (!quantization) throw fields.bad('quantization', 'an object', undefined)
  return readModelOpt(quantization)
}

/**
 * Reads the quantization recipe of a checkpoint from ModelOpt's `hf_quant_config.json`, from `quantization_config` in
 * `config.json`, or from both when they name the same algorithm (the sidecar, which is the original, then decides).
 *
 * @throws {ModelError} `UNSUPPORTED_MODEL` naming an algorithm that nibblet does not run, `BAD_FORMAT` otherwise.
 */
export function readQuantization(
  config: { json: JsonObject; file: string },
  sidecar?: { json: JsonObject; file: string },
): QuantizationRecipe {
  const fields = new Fields(config.json, config.file).object('quantization_config')
  const embedded = fields && readEmbedded(fields)
  if (!sidecar) return embedded ?? noQuantization(config.file)
  const recipe = readSidecar(sidecar.json, sidecar.file)
  if (embedded && (embedded.method !== recipe.method || embedded.algorithm !== recipe.algorithm)) {
    throw new ModelError(
      'BAD_FORMAT',
      `${sidecar.file} says ${recipe.method} ${recipe.algorithm || 'unquantized'}, but \`quantization_config\` in ` +
        `${config.file} says ${embedded.method} ${embedded.algorithm}. Keep the one that the weights were made with.`,
    )
  }
  return recipe
}
