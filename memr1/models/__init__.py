"""Where weights and tokenizers come from, and the policies (one set of weights per role) built on top of them.

`registry` turns a name into a model, `packaged` fetches the built-in models, `adapters` holds one policy per role.
Nothing is imported here, so that naming a model costs no torch.
"""
