export { type ChatContext, chat, complete } from './chat.js'
export { ChatStream } from './chat-stream.js'
export type { ChatOptions, GenerateOptions } from './options.js'
export type { ChatPart, FinishReason, Reply, Timings, TokenLogprob, Usage } from './reply.js'
export {
  type AnyTool,
  type StandardSchema,
  type Tool,
  type ToolCallContext,
  type ToolDefinition,
  tool,
} from './tool.js'
