// Draws /openapi.json as a page with forms. Knows OpenAPI, not this API; asks this server only.
"use strict";

const METHODS = ["get", "post", "put", "patch", "delete"];
const SHOWN_HEADERS = ["location", "retry-after", "etag", "content-type", "idempotency-replayed"];

function element(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

function resolve(spec, schema) {
  if (!schema || !schema.$ref) return schema || {};
  return schema.$ref.slice(2).split("/").reduce((at, step) => at[step], spec);
}

function typeOf(spec, schema) {
  const plain = resolve(spec, schema);
  if (plain.anyOf) return plain.anyOf.map((one) => typeOf(spec, one)).join(" | ");
  if (plain.enum) return plain.enum.map((value) => JSON.stringify(value)).join(" | ");
  if ("const" in plain) return JSON.stringify(plain.const);
  return plain.type || "any";
}

function limitsOf(spec, schema) {
  const plain = resolve(spec, schema);
  const parts = [plain, ...(plain.anyOf || [])];
  const names = {
    minimum: "≥", maximum: "≤", exclusiveMinimum: ">", exclusiveMaximum: "<",
    minLength: "length ≥", maxLength: "length ≤", pattern: "matches",
  };
  return parts.flatMap((part) =>
    Object.keys(names).filter((name) => name in part).map((name) => `${names[name]} ${part[name]}`),
  ).join(", ");
}

function table(heads, rows) {
  const cells = (tag, row) => row.map((cell) => element(tag, {}, cell ?? ""));
  return element("table", {},
    element("thead", {}, element("tr", {}, ...cells("th", heads))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...cells("td", row)))));
}

function bodySchema(spec, operation) {
  const content = operation.requestBody && operation.requestBody.content["application/json"];
  return content ? resolve(spec, content.schema) : null;
}

function fieldsTable(spec, schema) {
  const required = schema.required || [];
  const rows = Object.entries(schema.properties || {}).map(([name, field]) => [
    element("code", {}, name + (required.includes(name) ? " *" : "")),
    typeOf(spec, field),
    "default" in field ? JSON.stringify(field.default) : "",
    limitsOf(spec, field),
    field.description || "",
  ]);
  return table(["field", "type", "default", "limits", ""], rows);
}

function exampleBody(schema) {
  const text = { text: "This is a test of the voice generation system." };
  const fields = Object.entries(schema.properties || {})
    .filter(([, field]) => "default" in field && field.default !== null)
    .map(([name, field]) => [name, field.default]);
  return JSON.stringify({ ...text, ...Object.fromEntries(fields) }, null, 2);
}

function parameterInputs(spec, operation) {
  return (operation.parameters || []).map((parameter) => ({
    ...parameter,
    input: element("input", {
      placeholder: parameter.schema && parameter.schema.default != null ? String(parameter.schema.default) : "",
      ariaLabel: parameter.name,
    }),
    type: typeOf(spec, parameter.schema),
    limits: limitsOf(spec, parameter.schema),
  }));
}

function request(path, inputs, body) {
  const given = inputs.filter((one) => one.input.value !== "");
  const query = new URLSearchParams(
    given.filter((one) => one.in === "query").map((one) => [one.name, one.input.value]));
  const headers = Object.fromEntries(
    given.filter((one) => one.in === "header").map((one) => [one.name, one.input.value]));
  const url = given.filter((one) => one.in === "path").reduce(
    (at, one) => at.replace(`{${one.name}}`, encodeURIComponent(one.input.value)), path);
  if (body) headers["Content-Type"] = "application/json";
  return { url: query.size ? `${url}?${query}` : url, headers };
}

async function show(response, output) {
  const type = response.headers.get("content-type") || "";
  const lines = SHOWN_HEADERS.filter((name) => response.headers.has(name))
    .map((name) => `${name}: ${response.headers.get(name)}`);
  output.replaceChildren(element("pre", {}, [`${response.status} ${response.statusText}`, ...lines].join("\n")));
  if (type.startsWith("audio/")) {
    const src = URL.createObjectURL(await response.blob());
    output.append(element("audio", { controls: true, src }));
    return;
  }
  const text = await response.text();
  if (text) output.append(element("pre", {}, type.includes("json") ? JSON.stringify(JSON.parse(text), null, 2) : text));
}

function tryIt(method, path, inputs, body) {
  const output = element("div");
  const button = element("button", { type: "button" }, "Send");
  button.onclick = async () => {
    const { url, headers } = request(path, inputs, body);
    output.replaceChildren(element("pre", {}, `${method.toUpperCase()} ${url} …`));
    try {
      await show(await fetch(url, { method, headers, body: body ? body.value : undefined }), output);
    } catch (error) {
      output.replaceChildren(element("pre", {}, String(error)));
    }
  };
  return element("div", {}, button, output);
}

function responsesTable(operation) {
  const rows = Object.entries(operation.responses || {}).map(([code, response]) => {
    const contents = Object.values(response.content || {});
    const example = contents.map((one) => one.example).find((one) => one !== undefined);
    const shown = example === undefined ? "" : element("details", {},
      element("summary", {}, "example"), element("pre", {}, JSON.stringify(example, null, 2)));
    return [code, response.description, shown];
  });
  return table(["status", "", ""], rows);
}

function operationView(spec, path, method, operation) {
  const inputs = parameterInputs(spec, operation);
  const schema = bodySchema(spec, operation);
  const body = schema ? element("textarea", { value: exampleBody(schema), ariaLabel: "body" }) : null;
  const content = element("div", {}, element("p", {}, operation.description || ""));
  if (inputs.length) {
    content.append(element("h3", {}, "Parameters"), table(["name", "in", "type", "", "value"], inputs.map((one) => [
      element("code", {}, one.name + (one.required ? " *" : "")), one.in, one.type,
      [one.limits, one.description].filter(Boolean).join("; "), one.input])));
  }
  if (schema) content.append(element("h3", {}, "Body"), fieldsTable(spec, schema), body);
  content.append(element("h3", {}, "Responses"), responsesTable(operation), tryIt(method, path, inputs, body));
  return element("details", {},
    element("summary", {}, element("span", { className: "method" }, method.toUpperCase()),
      element("code", {}, path), ` ${operation.summary || ""}`),
    content);
}

function draw(spec, place) {
  const groups = new Map();
  for (const [path, item] of Object.entries(spec.paths)) {
    for (const method of METHODS.filter((name) => name in item)) {
      const tag = (item[method].tags || ["other"])[0];
      groups.set(tag, [...(groups.get(tag) || []), operationView(spec, path, method, item[method])]);
    }
  }
  place.replaceChildren(...[...groups].flatMap(([tag, views]) => [element("h2", {}, tag), ...views]));
}

fetch("/openapi.json")
  .then((response) => response.json())
  .then((spec) => draw(spec, document.getElementById("operations")))
  .catch((error) => document.getElementById("operations").replaceChildren(String(error)));
