/** The tags with which models of the family mark reasoning and tool calls in their output. */
export const tags = {
  thinkOpen: '<think>',
  thinkClose: '</think>',
  toolCallOpen: '<tool_call>',
  toolCallClose: '</tool_call>',
} as const

/**
 * Added tokens that are markup, not control: they are printed, and they keep their meaning inside assistant turns.
 * Some checkpoints flag them `special`, some do not, so the flag cannot tell.
 */
export const markupTokens: ReadonlySet<string> = new Set([
  ...Object.values(tags),
  '<tool_response>',
  '</tool_response>',
])
